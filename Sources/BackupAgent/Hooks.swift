internal import BlockIO
internal import CBlockIO
internal import Foundation
internal import Glibc
package import Logging
internal import Synchronization

/// Which programs are run when jobs end.
package struct HookOptions: Sendable, Hashable {
    /// For jobs that completed, with errors as well; nil: none.
    package var onCompleted: String?
    /// For jobs that failed; nil: none. A job that was cancelled has no hook: whoever cancelled it knows.
    package var onFailed: String?
    /// How long a program may run.
    package var limit = Duration.seconds(30)

    package init() {}

    /// Throws a sentence unless each program is a file that can be executed. Blocks.
    func check() throws(AgentError) {
        for (option, path) in [("--on-completed", onCompleted), ("--on-failed", onFailed)] {
            guard let path else { continue }
            var status = stat()
            let why: String? =
                if !path.isAbsolutePath || path.utf8.contains(0) {
                    "it is no absolute path"
                } else if stat(path, &status) != 0 {
                    BlockError.describe(errno: errno)
                } else if status.st_mode & S_IFMT != S_IFREG {
                    "it is no file"
                } else if access(path, X_OK) != 0 {
                    "it cannot be executed (\(BlockError.describe(errno: errno)))"
                } else {
                    nil
                }
            if let why {
                throw AgentError(.pathInvalid, "Couldn't use \(path) for \(option): \(why)", subject: path)
            }
        }
    }
}

/// Runs the operator's programs when jobs end, a few at once, each on a thread of its own; nobody waits for them.
package final class Hooks: Sendable {
    /// A job that has ended.
    struct Call: Sendable {
        var jobID: String
        /// The word of the wire.
        var result: String
        /// One JSON object and a line feed.
        var json: [UInt8]
        var executable: String
    }

    private struct State {
        var running = 0
        var waiting: [Call] = []
        var isEnding = false
        let idle = OneShot<Void>()
    }

    /// How many run at once.
    static let concurrency = 4
    /// How many wait; what is beyond is not run, which the log says.
    static let bound = 100

    private let options: HookOptions
    private let logger: Logger
    private let state = Mutex(State())

    package init(_ options: HookOptions, logger: Logger) {
        self.options = options
        self.logger = logger
    }

    /// The program for a result; nil where there is none.
    func executable(for result: JobResult?) -> String? {
        switch result {
        case .completed, .completedWithErrors: options.onCompleted
        case .failed: options.onFailed
        case .cancelled, nil: nil
        }
    }

    /// Runs the program, at once or when others have ended. Does not wait.
    func run(_ call: Call) {
        let (isDue, isRefused) = state.withLock { state in
            if state.isEnding { return (false, true) }
            if state.running < Self.concurrency {
                state.running += 1
                return (true, false)
            }
            guard state.waiting.count < Self.bound else { return (false, true) }
            state.waiting.append(call)
            return (false, false)
        }
        if isDue { start(call) }
        if isRefused {
            logger.warning(
                "The hook \(call.executable) is not run for the job \(call.jobID): too many wait, or the agent stops"
            )
        }
    }

    /// Lets those that run or wait end, but no longer than `limit`; others are not begun. Those that still run are left to
    /// themselves.
    package func finish(within limit: Duration) async {
        let (isIdle, idle) = state.withLock { state in
            state.isEnding = true
            return (state.running == 0, state.idle)
        }
        if isIdle { return }
        if await idle.wait(atMost: limit) == nil {
            let (running, waiting) = state.withLock { ($0.running, $0.waiting.count) }
            logger.warning("\(running) hooks still run and \(waiting) were not begun as the agent ends")
        }
    }

    private func start(_ call: Call) {
        // Waiting for a child blocks, and Swift's own threads are few.
        Thread.detachNewThread { self.work(call) }
    }

    private func work(_ first: Call) {
        var next: Call? = first
        while let call = next {
            let outcome = HookProcess(
                executable: call.executable, environment: Self.environment(call), input: call.json,
                limit: options.limit
            ).run()
            tell(call, outcome)
            next = state.withLock { state in
                if !state.waiting.isEmpty { return state.waiting.removeFirst() }
                state.running -= 1
                return nil
            }
        }
        let idle = state.withLock { $0.isEnding && $0.running == 0 ? $0.idle : nil }
        idle?.fulfil(())
    }

    /// All that a program finds in its environment.
    private static func environment(_ call: Call) -> [String] {
        let path =
            getenv("PATH").map { String(cString: $0) }
            ?? "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["PATH=\(path)", "DRIVE_BACKUP_JOB=\(call.jobID)", "DRIVE_BACKUP_RESULT=\(call.result)"]
    }

    private func tell(_ call: Call, _ outcome: HookProcess.Outcome) {
        let name = "The hook \(call.executable) for the job \(call.jobID)"
        for line in outcome.lines { logger.info("\(name): \(line)") }
        if outcome.isCut { logger.info("\(name) printed more, which is not shown") }
        switch outcome.end {
        case .exited(0): logger.debug("\(name) has ended")
        case .exited(let status): logger.warning("\(name) failed with status \(status)")
        case .killed(let signal): logger.warning("\(name) was killed by signal \(signal)")
        case .timedOut:
            logger.warning("\(name) took longer than \(options.limit.components.seconds) s and was ended")
        case .notStarted(let error):
            logger.warning("\(name) couldn't be started: \(BlockError.describe(errno: error))")
        }
    }
}
