internal import CBlockIO
internal import Glibc
internal import Synchronization

/// An engine of one thread that runs the code, and a few that make its blocking calls.
///
/// It stands in for `RingEngine` where the system refuses io_uring. Call `shutDown` when it is no longer needed: its
/// thread keeps it alive until then.
package final class ThreadsEngine: IOEngine {
    package let name: String

    private let queue = JobQueue()
    private let wakeUp = Semaphore()
    private let workers: WorkerThreads
    private let blockers: WorkerThreads
    private let state = Mutex(State())

    private struct State {
        /// Calls that were made and have not resumed their caller yet.
        var inFlight = 0
        var waitingForEnd: UnsafeContinuation<Void, Never>?
        var isEnding = false
    }

    /// Starts the engine's thread. `workers` is the number of transfers that run at the same time.
    package init(name: String, workers: Int = 8) {
        self.name = "threads \(name)"
        self.workers = WorkerThreads(name: "io \(name)", maximum: max(workers, 1))
        blockers = WorkerThreads(name: "call \(name)", maximum: 4)
        let thread = startThread(named: "run \(name)") { self.work() }
        guard let thread else { preconditionFailure("the system gives no thread for the engine \(name)") }
        pthread_detach(thread)
    }

    package var isCurrent: Bool { queue.isCurrent }

    // MARK: Executor

    package func enqueue(_ job: consuming ExecutorJob) {
        if queue.add(.job(UnownedJob(job))) { wakeUp.signal() }
    }

    package func checkIsolated() { preconditionCurrent() }

    package func isIsolatingCurrentContext() -> Bool? { isCurrent }

    private func work() {
        queue.becomeCurrent()
        let executor = asUnownedTaskExecutor()
        var batch: [JobQueue.Entry] = []
        while true {
            queue.take(into: &batch)
            for entry in batch {
                switch entry {
                case .job(let job): job.runSynchronously(on: executor)
                case .call(let call): call()
                }
            }
            batch.removeAll(keepingCapacity: true)
            if queue.isLocalEmpty && state.withLock({ $0.isEnding && $0.inFlight == 0 }) && queue.close() {
                break
            }
            if queue.fallAsleep() { wakeUp.wait() }
        }
        workers.end()
        blockers.end()
        state.withLock { $0.waitingForEnd }?.resume()
    }

    /// Waits until no call is in flight and no job is left, then ends the threads. Call it from another executor.
    package func shutDown() async {
        precondition(!isCurrent, "an engine is shut down from outside")
        await withUnsafeContinuation { continuation in
            state.withLock { state in
                precondition(!state.isEnding, "the engine \(name) is shut down once")
                state.waitingForEnd = continuation
                state.isEnding = true
            }
            wakeUp.signal()
        }
    }

    // MARK: Operations

    /// Makes a blocking call on one of `threads` and resumes with its result.
    private func perform<Result: Sendable>(
        on threads: WorkerThreads, _ body: @escaping @Sendable () -> Result
    ) async -> Result {
        state.withLock { $0.inFlight += 1 }
        let result = await withUnsafeContinuation { continuation in
            threads.run { continuation.resume(returning: body()) }
        }
        let isLast = state.withLock { state in
            state.inFlight -= 1
            return state.isEnding && state.inFlight == 0
        }
        // On its own thread the engine looks by itself; a caller on another executor has to tell it.
        if isLast && !isCurrent { wakeUp.signal() }
        return result
    }

    package func read(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) async -> Int {
        // SAFETY: the caller keeps the memory alive and to itself until this returns.
        nonisolated(unsafe) let bytes = bytes
        return await perform(on: workers) {
            Int(cblockio_pread(descriptor, bytes.baseAddress, bytes.count, offset))
        }
    }

    package func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int {
        // SAFETY: the caller keeps the memory alive and unchanged until this returns.
        nonisolated(unsafe) let bytes = bytes
        return await perform(on: workers) {
            Int(cblockio_pwrite(descriptor, bytes.baseAddress, bytes.count, offset))
        }
    }

    package func synchronize(_ descriptor: Int32, dataOnly: Bool) async -> Int {
        await perform(on: workers) { Int(cblockio_sync(descriptor, dataOnly)) }
    }

    package func allocate(_ descriptor: Int32, mode: Int32, _ range: ByteRange) async -> Int {
        await perform(on: workers) { Int(cblockio_fallocate(descriptor, mode, range.offset, range.length)) }
    }

    package func synchronizeRange(_ descriptor: Int32, _ range: ByteRange, flags: UInt32) async -> Int {
        await perform(on: workers) {
            Int(cblockio_sync_file_range(descriptor, range.offset, range.length, flags))
        }
    }

    package func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        await perform(on: blockers, body)
    }
}
