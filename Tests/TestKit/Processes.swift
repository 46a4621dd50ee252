package import BlockIO
internal import Foundation
internal import Glibc
internal import Synchronization

/// How a child process ended, and what it said.
package struct ProcessResult: Sendable {
    /// The exit status, or 128 and the number of the signal that killed it.
    package var status: Int32
    package var output: String
    package var error: String
}

/// Threads for blocking calls of tests; Swift's own pool has only two on a small machine.
package let testThreads = ThreadsEngine(name: "tests")

/// Runs a program to its end. `executable` is looked up in PATH when it has no slash.
package func runProcess(
    _ executable: String, _ arguments: [String], input: String = "", directory: String? = nil,
    environment: [String: String] = [:]
) async throws -> ProcessResult {
    let result = await testThreads.blocking {
        Result {
            let child = try Child(executable, arguments, directory: directory, environment: environment)
            return try child.finish(input: input)
        }
    }
    return try result.get()
}

/// Runs qemu-img; throws with what it said when its exit status is not `status` (nil: any will do).
@discardableResult
package func qemuImg(_ arguments: [String], expecting status: Int32? = 0) async throws -> ProcessResult {
    let result = try await runProcess("qemu-img", arguments)
    if let status, result.status != status {
        throw TestKitError(
            "qemu-img \(arguments.joined(separator: " ")) exited with \(result.status): "
                + result.output + result.error)
    }
    return result
}

/// A program that goes on running beside the test; it is killed when the last reference goes away.
package final class BackgroundProcess: Sendable {
    private let child: Child

    package init(_ executable: String, _ arguments: [String]) throws {
        child = try Child(executable, arguments, directory: nil, environment: [:])
    }

    /// Sends a line to its standard input.
    package func send(_ line: String) async throws {
        let child = child
        try await testThreads.blocking {
            Result { try child.input.write(contentsOf: Data((line + "\n").utf8)) }
        }.get()
    }

    /// Reads its standard output until `text` has come; throws when it ends before.
    package func wait(for text: String) async throws {
        let child = child
        try await testThreads.blocking {
            Result {
                var seen = ""
                while !seen.contains(text) {
                    let more = child.output.availableData
                    guard !more.isEmpty else {
                        throw TestKitError("A program ended without saying \"\(text)\": \(seen)")
                    }
                    seen += String(decoding: more, as: UTF8.self)
                }
            }
        }.get()
    }

    /// Closes its standard input and waits for its end.
    @discardableResult
    package func finish() async throws -> ProcessResult {
        let child = child
        return try await testThreads.blocking { Result { try child.finish(input: "") } }.get()
    }

    /// Kills it and waits for its end.
    package func kill() async throws {
        child.kill()
        try await finish()
    }
}

/// A child process with pipes; killed when it was not waited for. All of it blocks.
///
/// Not Foundation's `Process`: to close what a child must not inherit that lists all open files, and reads beyond the end of
/// the list where there are many.
private final class Child: @unchecked Sendable {
    /// One child is made at a time: until another one's pipes are closed on exec, a child that starts would inherit them, and
    /// keep their ends from being seen for as long as it runs.
    private static let birth = Mutex(())

    // SAFETY: all of it is used by one call at a time: the tests await one before they make the next.
    let input: FileHandle
    let output: FileHandle
    private let error: FileHandle
    private let number: pid_t
    /// As waitpid(2) tells it; nil until then, and so long the number is this process's.
    private var status: Int32?

    init(
        _ executable: String, _ arguments: [String], directory: String?, environment: [String: String]
    ) throws {
        // env(1) is who can change the directory.
        let words = [executable] + arguments
        let command = directory.map { ["env", "-C", $0] + words } ?? words
        let variables = ProcessInfo.processInfo.environment.merging(environment) { $1 }.map { "\($0)=\($1)" }
        (number, input, output, error) = try Self.birth.withLock { _ in
            let (itsInput, input) = try Self.pipe()
            let (output, itsOutput) = try Self.pipe()
            let (error, itsError) = try Self.pipe()
            let number = try Self.start(command, variables, [itsInput, itsOutput, itsError])
            for end in [itsInput, itsOutput, itsError] { try end.close() }
            return (number, input, output, error)
        }
    }

    deinit {
        guard status == nil else { return }
        kill()
        waitForEnd()
    }

    func kill() {
        if status == nil { _ = Glibc.kill(number, SIGKILL) }
    }

    func finish(input text: String) throws -> ProcessResult {
        // What a program says on standard error while we read its output must not fill the pipe; a thread drains it.
        let errors = Drain(error)
        if !text.isEmpty { try input.write(contentsOf: Data(text.utf8)) }
        try input.close()
        let said = try output.readToEnd() ?? Data()
        let complained = errors.wait()
        let status = waitForEnd()
        let signal = status & 0x7f
        return ProcessResult(
            status: signal == 0 ? (status >> 8) & 0xff : 128 + signal,
            output: String(decoding: said, as: UTF8.self), error: String(decoding: complained, as: UTF8.self))
    }

    @discardableResult
    private func waitForEnd() -> Int32 {
        if let status { return status }
        var found: Int32 = 0
        while waitpid(number, &found, 0) < 0 {
            precondition(errno == EINTR, "a child can be waited for (error \(errno))")
        }
        status = found
        return found
    }

    /// A pipe's end to read from and its end to write to; both are closed in every program that is started later.
    private static func pipe() throws -> (FileHandle, FileHandle) {
        var ends: [Int32] = [-1, -1]
        guard Glibc.pipe(&ends) == 0 else {
            throw TestKitError("Couldn't make a pipe: \(String(cString: strerror(errno)))")
        }
        let handles = ends.map { FileHandle(fileDescriptor: $0, closeOnDealloc: true) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        return (handles[0], handles[1])
    }

    /// Starts a program with three files as its own.
    private static func start(
        _ command: [String], _ variables: [String], _ files: [FileHandle]
    ) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        for (number, file) in files.enumerated() {
            posix_spawn_file_actions_adddup2(&actions, file.fileDescriptor, Int32(number))
        }
        // Threads of ours may keep signals back that a program must hear.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
        var number = pid_t()
        let result = withCStrings(command) { words in
            withCStrings(variables) { variables in
                posix_spawnp(&number, command[0], &actions, &attributes, words, variables)
            }
        }
        guard result == 0 else {
            throw TestKitError("Couldn't start \(command[0]): \(String(cString: strerror(result)))")
        }
        return number
    }

    private static func withCStrings<Result>(
        _ strings: [String], _ body: ([UnsafeMutablePointer<CChar>?]) -> Result
    ) -> Result {
        let copies = strings.map { strdup($0) }
        defer { for copy in copies { free(copy) } }
        return body(copies + [nil])
    }
}

/// Reads a file handle to its end on a thread of its own.
private final class Drain: @unchecked Sendable {
    // SAFETY: `data` is written by the thread before it signals and read after the wait for that.
    private var data = Data()
    private let done = DispatchSemaphore(value: 0)

    init(_ handle: FileHandle) {
        Thread.detachNewThread { [self] in
            // Nothing more to read, for whatever reason, is the end.
            data = (try? handle.readToEnd()) ?? Data()
            done.signal()
        }
    }

    func wait() -> Data {
        done.wait()
        return data
    }
}
