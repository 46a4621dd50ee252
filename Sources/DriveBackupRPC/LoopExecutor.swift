internal import NIOCore
internal import Synchronization

/// Runs tasks on an event loop; those that become ready together run together.
final class LoopExecutor: TaskExecutor {
    private let eventLoop: any EventLoop
    private let ready = Mutex<[UnownedJob]>([])

    init(_ eventLoop: any EventLoop) { self.eventLoop = eventLoop }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        let isFirst = ready.withLock { ready in
            ready.append(job)
            return ready.count == 1
        }
        if isFirst { eventLoop.execute { self.run() } }
    }

    private func run() {
        let jobs = ready.withLock { ready in
            defer { ready = [] }
            return ready
        }
        for job in jobs { job.runSynchronously(on: asUnownedTaskExecutor()) }
    }
}
