internal import Synchronization

/// What both kinds of engine have in common: the queue of jobs, the threads for blocking calls, and the end.
final class EngineCore: Sendable {
    private struct State {
        /// Calls on other threads that were made and have not resumed their caller yet.
        var inFlight = 0
        var waitingForEnd: UnsafeContinuation<Void, Never>?
        var isEnding = false
    }

    let name: String
    let queue = JobQueue()
    private let state = Mutex(State())
    private let blockers: WorkerThreads
    /// Wakes the engine's thread, which may be on its way to sleep; harmless at any time.
    private let wake: @Sendable () -> Void

    init(name: String, wake: @escaping @Sendable () -> Void) {
        self.name = name
        self.wake = wake
        blockers = WorkerThreads(name: "call \(name)", maximum: 4)
    }

    /// Adds to what the engine's thread does.
    func add(_ entry: JobQueue.Entry) {
        if queue.add(entry) { wake() }
    }

    /// Runs what is queued, a round at a time, at most `rounds`: jobs that come up in a round belong to the next.
    func runJobs(rounds: Int, on executor: UnownedTaskExecutor, _ batch: inout [JobQueue.Entry]) {
        for _ in 0..<rounds {
            queue.take(into: &batch)
            if batch.isEmpty { return }
            for entry in batch {
                switch entry {
                case .job(let job): job.runSynchronously(on: executor)
                case .call(let call): call()
                }
            }
            batch.removeAll(keepingCapacity: true)
        }
    }

    /// Makes a blocking call on one of `threads`, else on those for odd calls, and resumes with its result.
    func perform<Result: Sendable>(
        on threads: WorkerThreads? = nil, _ body: @escaping @Sendable () -> Result
    ) async -> Result {
        await wait { continuation in
            (threads ?? blockers).run { continuation.resume(returning: body()) }
        }
    }

    /// Waits for something that another thread does for this engine, which does not end before.
    func wait<Result: Sendable>(_ begin: (UnsafeContinuation<Result, Never>) -> Void) async -> Result {
        state.withLock { $0.inFlight += 1 }
        let result = await withUnsafeContinuation(begin)
        let isLast = state.withLock { state in
            state.inFlight -= 1
            return state.isEnding && state.inFlight == 0
        }
        // On its own thread the engine looks by itself; a caller on another executor has to tell it.
        if isLast && !queue.isCurrent { wake() }
        return result
    }

    /// Asks for the end and waits for it.
    func shutDown() async {
        precondition(!queue.isCurrent, "the engine \(name) is shut down from outside")
        await withUnsafeContinuation { continuation in
            state.withLock { state in
                precondition(!state.isEnding, "the engine \(name) is shut down once")
                state.waitingForEnd = continuation
                state.isEnding = true
            }
            wake()
        }
    }

    /// True when the end was asked for and nothing is left to do; from then on nothing can be added.
    func closeIfDone() -> Bool {
        state.withLock { $0.isEnding && $0.inFlight == 0 } && queue.close()
    }

    /// The engine's thread has ended its work; blocks for the other threads.
    func finish() {
        blockers.end()
        state.withLock { $0.waitingForEnd.take() }?.resume()
    }
}
