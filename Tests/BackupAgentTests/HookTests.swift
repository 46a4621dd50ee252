import Foundation
import Logging
import Synchronization
import TestKit
import Testing

@testable import BackupAgent

@Suite("Hooks")
struct HookTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    /// A script with this body. Another process writes it: a file that this one has open for writing is, for a moment, also
    /// open in the children that other tests start meanwhile, and a file open for writing cannot be executed (ETXTBSY).
    private func script(_ body: String, name: String = "hook") async throws -> String {
        let path = directory.file(name)
        let written = try await runProcess(
            "sh", ["-c", "cat > \"$0\" && chmod 755 \"$0\"", path], input: "#!/bin/sh\n\(body)\n")
        guard written.status == 0 else { throw TestKitError("Couldn't write \(path): \(written.error)") }
        return path
    }

    private func run(
        _ body: String, input: [UInt8] = Array("{}\n".utf8), limit: Duration = .seconds(600),
        grace: Duration = .seconds(600)
    ) async throws -> HookProcess.Outcome {
        let process = HookProcess(
            executable: try await script(body), environment: ["PATH=/usr/bin:/bin", "DRIVE_BACKUP_JOB=vm1"],
            input: input,
            limit: limit, grace: grace)
        return await withCheckedContinuation { continuation in
            Thread.detachNewThread { continuation.resume(returning: process.run()) }
        }
    }

    @Test("a hook gets its input whole, and its end, however much that is")
    func input() async throws {
        let text = (0..<300_000).map { _ in UInt8.random(in: 0x61...0x7a) }
        let outcome = try await run("cat > \(directory.file("out"))", input: text)
        #expect(outcome.end == .exited(0) && outcome.lines.isEmpty)
        #expect(try Data(contentsOf: URL(fileURLWithPath: directory.file("out"))) == Data(text))
    }

    @Test("one that reads nothing, or closes its input, ends as it likes")
    func readsNothing() async throws {
        let text = [UInt8](repeating: 0x78, count: 1 << 20)
        #expect(try await run("exit 0", input: text).end == .exited(0))
        #expect(try await run("exec 0<&-; exit 7", input: text).end == .exited(7))
        #expect(try await run("kill -KILL $$", input: text).end == .killed(signal: 9))
    }

    @Test("it has the environment it is given, no descriptors but three, and the root directory")
    func surroundings() async throws {
        let descriptor = open("/dev/null", O_RDONLY)
        defer { close(descriptor) }
        let outcome = try await run(
            "env | grep -v '^PWD=' | sort; pwd; for fd in /proc/$$/fd/*; do echo ${fd##*/}; done")
        let descriptors = outcome.lines.drop { $0 != "/" }.dropFirst().filter { $0 != "10" && $0 != "255" }
        #expect(
            outcome.lines.prefix { $0 != "/" }.filter { !$0.hasPrefix("_=") } == [
                "DRIVE_BACKUP_JOB=vm1", "PATH=/usr/bin:/bin",
            ])
        // The shell's own copy of its script is not ours.
        #expect(Array(descriptors.prefix(3)) == ["0", "1", "2"] && !descriptors.contains("\(descriptor)"))
    }

    @Test("one that hangs is ended, with what it has started, even if that does not want to")
    func hangs() async throws {
        let pids = directory.file("pids")
        let outcome = try await run(
            "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo $$ $! > \(pids); while :; do sleep 1; done",
            limit: .milliseconds(1500), grace: .milliseconds(200))
        #expect(outcome.end == .timedOut)
        // Its number is in the file unless it was ended before it got there.
        let numbers = (try? String(contentsOfFile: pids, encoding: .utf8)) ?? ""
        for pid in numbers.split(whereSeparator: \.isWhitespace).compactMap({ pid_t($0) }) {
            // The child of the child is reaped by init, or stays a zombie where there is none that does.
            while kill(pid, 0) == 0,
                try String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8).contains(") S")
            {
                await Task.yield()
            }
        }
    }

    @Test("a child that it leaves behind, with its output open, holds nobody up")
    func forks() async throws {
        let outcome = try await run("sleep 1000 & echo $!; exit 0")
        #expect(outcome.end == .exited(0))
        if let pid = outcome.lines.first.flatMap({ pid_t($0) }) { kill(pid, SIGKILL) }
    }

    @Test("one that prints much is read to the end and remembered in part")
    func prints() async throws {
        let outcome = try await run(
            "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done; head -c 3000000 /dev/zero")
        #expect(outcome.end == .exited(0))
        #expect(outcome.lines.count == HookProcess.lineLimit.count && outcome.isCut)
        #expect(outcome.lines.first == "line 0")
        let endless = try await run("exec cat /dev/zero", limit: .milliseconds(300))
        #expect(endless.end == .timedOut && endless.isCut)
    }

    @Test("a program that cannot be started is told, and nothing else happens")
    func notStarted() async throws {
        let process = HookProcess(
            executable: directory.file("none"), environment: [], input: [1], limit: .seconds(600))
        #expect(process.run().end == .notStarted(errno: ENOENT))
    }

    @Test("hooks are files that can be executed, which is said at the start")
    func checks() async throws {
        var options = HookOptions()
        options.onCompleted = try await script("exit 0")
        try options.check()
        for bad in [directory.path, directory.file("none"), "hook", "/etc/passwd"] {
            options.onFailed = bad
            let error = #expect(throws: AgentError.self) { try options.check() }
            #expect(error?.message.contains("--on-failed") == true && error?.message.contains(bad) == true)
        }
    }

    @Test(
        "each job that completed or failed has its hook, a few at once, those beyond the bound none; one that was cancelled has none"
    )
    func many() async throws {
        var options = HookOptions()
        options.onCompleted = try await script(
            "echo completed $DRIVE_BACKUP_JOB >> \(directory.file("log"))", name: "c")
        options.onFailed = try await script(
            "echo $DRIVE_BACKUP_RESULT $DRIVE_BACKUP_JOB >> \(directory.file("log"))", name: "f")
        let hooks = Hooks(options, logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
        var expected: [String] = []
        for number in 0..<60 {
            let result: JobResult = [.completed, .failed, .cancelled, .completedWithErrors][number % 4]
            hooks.ended(
                JobInfo(
                    id: "job\(number)", drive: "d", target: "/t", state: .concluded, result: result,
                    progress: .none,
                    speedBytesPerSecond: 0, sync: .full, createdAt: 1, waitsForFinalize: false,
                    waitsForDismiss: false))
            switch result {
            case .cancelled: break
            case .failed: expected.append("failed job\(number)")
            default: expected.append("completed job\(number)")
            }
        }
        await hooks.finish(within: .seconds(600))
        let lines = try String(contentsOfFile: directory.file("log"), encoding: .utf8).split(separator: "\n")
        #expect(lines.map(String.init).sorted() == expected.sorted())
    }
}
