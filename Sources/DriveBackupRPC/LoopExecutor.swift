internal import NIOCore
internal import Synchronization

/// Runs tasks on an event loop; those that become ready together run together.
final class LoopExecutor: TaskExecutor {
    private struct State {
        var ready: [UnownedJob] = []
        /// Somebody will call `run`.
        var isExpected = false
    }

    private let eventLoop: any EventLoop
    private let state = Mutex(State())

    init(_ eventLoop: any EventLoop) { self.eventLoop = eventLoop }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        let isExpected = state.withLock { state in
            state.ready.append(job)
            defer { state.isExpected = true }
            return state.isExpected
        }
        if !isExpected { eventLoop.execute { self.run() } }
    }

    /// Says that `run` will be called, on the loop: until then tasks gather.
    func expectRun() {
        state.withLock { $0.isExpected = true }
    }

    /// Runs what is ready. On the loop.
    func run() {
        let jobs = state.withLock { state in
            defer { state = State() }
            return state.ready
        }
        for job in jobs { job.runSynchronously(on: asUnownedTaskExecutor()) }
    }
}
