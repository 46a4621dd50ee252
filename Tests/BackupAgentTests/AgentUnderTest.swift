import BackupAgent
import DiskImages
import DriveBackupClient
import Glibc
import Logging
import TestKit

/// An agent in this process with directories of its own, and a client of it without a socket.
final class AgentUnderTest: Sendable {
    let directory: TemporaryDirectory
    let agent: Agent
    let connection: RPCConnection
    let client: DriveBackupClient

    init(
        drives: [DriveOption], exports: [ExportOption] = [], staging: StagingOption? = nil,
        allowing: [String] = [], in directory: TemporaryDirectory
    ) async throws {
        self.directory = directory
        let socket = "unix:" + directory.file("agent.sock")
        var configuration = AgentConfiguration(
            listen: [socket], stateDirectory: directory.file("state"),
            runtimeDirectory: directory.file("run"),
            version: "test")
        configuration.drives = drives
        configuration.exports = exports
        configuration.staging = staging
        configuration.allowedDirectories = allowing
        configuration.targetProgram = try agentProgram()
        agent = try await Agent(
            configuration, logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
        connection = try await agent.connectInProcess()
        client = DriveBackupClient(connection: connection, address: try RPCAddress(parsing: socket))
    }

    func stop() async {
        await connection.close()
        await agent.stop()
    }

    /// Runs a backup to its end and returns its events.
    func backup(_ request: BackupRequest) async throws -> [WireEvent] {
        var events: [WireEvent] = []
        for try await event in try await client.backups.start(request) { events.append(event) }
        return events
    }

    /// Starts a backup and returns its `started` event.
    @discardableResult
    func start(_ request: BackupRequest) async throws -> WireEvent {
        var request = request
        request.detach = true
        let events = try await backup(request)
        guard let first = events.first, events.count == 1, first.started != nil else {
            throw TestKitError("The stream of a detached start had these events: \(events)")
        }
        return first
    }

    /// The last event of a job, which is waited for.
    func end(of job: String) async throws -> WireEvent {
        var last: WireEvent?
        for try await event in try await client.jobs.watch(job) { last = event }
        guard let last else { throw TestKitError("The job \(job) had no events") }
        return last
    }

    /// Waits until the job is in a state, as its events tell.
    func wait(for state: WireState, of job: String) async throws {
        for try await event in try await client.jobs.watch(job) where event.stateChanged?.state == state {
            return
        }
        throw TestKitError("The job \(job) ended without being \(state)")
    }
}

/// Returns when `condition` holds: what is removed in the background has no other end to wait for.
func eventually(_ condition: () async throws -> Bool) async throws {
    while try await !condition() { try await Task.sleep(for: .milliseconds(10)) }
}

/// What is in a directory: names, kinds, sizes, times, contents.
func snapshot(_ directory: String) async throws -> String {
    let script = """
        find . -printf '%P %y %s %T@ %l %i\\n' | grep -v '^ d' | sort; \
        find . -type f -print0 | sort -z | xargs -0 -r sha256sum
        """
    return try await runProcess("sh", ["-c", script], directory: directory).output
}

/// Makes a raw image with some data in it.
func makeRaw(_ path: String, size: String = "8M", pattern: Int = 0x5d) async throws {
    try await qemuImg(["create", "-f", "raw", path, size])
    try await qemuIO(path, "raw", ["write -P \(pattern) 0 64k", "write -P 7 1M 1536k", "write -z 5M 64k"])
}

func qemuIO(_ path: String, _ format: String, _ commands: [String]) async throws {
    let result = try await runProcess("qemu-io", ["-f", format, path] + commands.flatMap { ["-c", $0] })
    guard result.status == 0 else { throw TestKitError(result.output + result.error) }
}

/// The status that `body` throws.
func status(_ body: () async throws -> Void) async -> RPCStatus? {
    do {
        try await body()
        return nil
    } catch {
        return error as? RPCStatus
    }
}

/// The agent's program, which the build puts beside that of the tests.
func agentProgram() throws -> String {
    guard let path = realpath("/proc/self/exe", nil) else { throw TestKitError("The program has no path") }
    defer { free(path) }
    let own = String(cString: path)
    var directory = own.split(separator: "/").dropLast()
    while !directory.isEmpty {
        let program = "/" + (directory + ["drive-backup-agent"]).joined(separator: "/")
        if access(program, X_OK) == 0 { return program }
        directory = directory.dropLast()
    }
    throw TestKitError("There is no drive-backup-agent beside \(own)")
}
