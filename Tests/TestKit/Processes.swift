package import BlockIO
internal import Foundation

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

    deinit {
        if child.process.isRunning { Foundation.kill(child.process.processIdentifier, SIGKILL) }
    }

    /// Sends a line to its standard input.
    package func send(_ line: String) async throws {
        let child = child
        try await testThreads.blocking {
            Result { try child.input.fileHandleForWriting.write(contentsOf: Data((line + "\n").utf8)) }
        }.get()
    }

    /// Reads its standard output until `text` has come; throws when it ends before.
    package func wait(for text: String) async throws {
        let child = child
        try await testThreads.blocking {
            Result {
                var seen = ""
                while !seen.contains(text) {
                    let more = child.output.fileHandleForReading.availableData
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
        Foundation.kill(child.process.processIdentifier, SIGKILL)
        try await finish()
    }
}

/// A child process with pipes. All of it blocks.
private final class Child: @unchecked Sendable {
    // SAFETY: each of these is used by one call at a time: the tests await one before they make the next.
    let process = Process()
    let input = Pipe()
    let output = Pipe()
    let error = Pipe()

    init(
        _ executable: String, _ arguments: [String], directory: String?, environment: [String: String]
    ) throws {
        if executable.contains("/") {
            process.executableURL = URL(fileURLWithPath: executable)
            process.arguments = arguments
        } else {
            process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
            process.arguments = [executable] + arguments
        }
        if let directory { process.currentDirectoryURL = URL(fileURLWithPath: directory) }
        if !environment.isEmpty {
            process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        }
        process.standardInput = input
        process.standardOutput = output
        process.standardError = error
        try process.run()
    }

    func finish(input text: String) throws -> ProcessResult {
        // What a program says on standard error while we read its output must not fill the pipe; a thread drains it.
        let errors = Drain(error.fileHandleForReading)
        if !text.isEmpty { try input.fileHandleForWriting.write(contentsOf: Data(text.utf8)) }
        try input.fileHandleForWriting.close()
        let said = try output.fileHandleForReading.readToEnd() ?? Data()
        let complained = errors.wait()
        process.waitUntilExit()
        let status = process.terminationStatus
        return ProcessResult(
            status: process.terminationReason == .exit ? status : 128 + status,
            output: String(decoding: said, as: UTF8.self), error: String(decoding: complained, as: UTF8.self))
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
