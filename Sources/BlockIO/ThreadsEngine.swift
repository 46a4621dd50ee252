internal import CBlockIO
package import Glibc

/// An engine of one thread that runs the code, and a few that make its blocking calls.
///
/// It stands in for `RingEngine` where the system refuses io_uring. Call `shutDown` when it is no longer needed: its
/// thread keeps it alive until then.
package final class ThreadsEngine: IOEngine {
    package let name: String

    private let core: EngineCore
    package let owner: EngineOwner
    private let wakeUp: Semaphore
    private let workers: WorkerThreads
    private let sockets: SocketPoller
    private let writesItself: Bool

    /// Starts the engine's thread. `workers` is the number of transfers that run at the same time. With `writesItself` the
    /// engine's own thread writes into the page cache, for who has nothing else to do: a file takes one write at a time
    /// anyway, and threads that wait for their turn cost more than the write.
    package init(name: String, workers: Int = 8, writesItself: Bool = false) {
        self.writesItself = writesItself
        let wakeUp = Semaphore()
        self.name = "threads \(name)"
        self.wakeUp = wakeUp
        self.workers = WorkerThreads(name: "io \(name)", maximum: max(workers, 1))
        sockets = SocketPoller(name: "net \(name)")
        core = EngineCore(name: name) { wakeUp.signal() }
        owner = core.queue.owner
        guard let thread = startThread(named: "run \(name)", { self.work() }) else {
            preconditionFailure("the system gives no thread for the engine \(name)")
        }
        pthread_detach(thread)
    }

    // MARK: Executor

    package var isCurrent: Bool { owner.isCurrent }

    package func enqueue(_ job: consuming ExecutorJob) { core.add(.job(UnownedJob(job))) }

    package func checkIsolated() { preconditionCurrent() }

    package func isIsolatingCurrentContext() -> Bool? { isCurrent }

    package func shutDown() async { await core.shutDown() }

    private func work() {
        core.queue.becomeCurrent()
        let executor = asUnownedTaskExecutor()
        var batch: [JobQueue.Entry] = []
        while !core.closeIfDone() {
            core.runJobs(rounds: 1, on: executor, &batch)
            if core.queue.fallAsleep() { wakeUp.wait() }
        }
        workers.end()
        sockets.end()
        core.finish()
    }

    // MARK: Operations

    package func read(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) async -> Int {
        // SAFETY: the caller keeps the memory alive and to itself until this returns.
        nonisolated(unsafe) let bytes = bytes
        return await core.perform(on: workers) {
            Int(cblockio_pread(descriptor, bytes.baseAddress, bytes.count, offset))
        }
    }

    package func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int {
        // SAFETY: the caller keeps the memory alive and unchanged until this returns.
        nonisolated(unsafe) let bytes = bytes
        return await core.perform(on: workers) {
            Int(cblockio_pwrite(descriptor, bytes.baseAddress, bytes.count, offset))
        }
    }

    package func writeAtOnce(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64
    ) -> Int? {
        guard writesItself, isCurrent else { return nil }
        return Int(cblockio_pwrite(descriptor, bytes.baseAddress, bytes.count, offset))
    }

    package func writeQuickly(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64
    ) async -> Int {
        if let count = writeAtOnce(descriptor, bytes, at: offset) { return count }
        return await write(descriptor, bytes, at: offset)
    }

    package func synchronize(_ descriptor: Int32, dataOnly: Bool) async -> Int {
        await core.perform(on: workers) { Int(cblockio_sync(descriptor, dataOnly)) }
    }

    package func allocate(_ descriptor: Int32, mode: Int32, _ range: ByteRange) async -> Int {
        await core.perform(on: workers) {
            Int(cblockio_fallocate(descriptor, mode, range.offset, range.length))
        }
    }

    package func synchronizeRange(_ descriptor: Int32, _ range: ByteRange, flags: UInt32) async -> Int {
        await core.perform(on: workers) {
            Int(cblockio_sync_file_range(descriptor, range.offset, range.length, flags))
        }
    }

    package func accept(_ listener: Int32) async -> Int {
        while true {
            let result = Int(cblockio_accept(listener))
            guard result == Int(-EAGAIN) else { return result }
            let ready = await core.wait { self.sockets.wait(for: listener, .reading, $0) }
            if ready < 0 { return ready }
            // A non-blocking accept(2) does not say of every kind of socket that it was shut down.
            if ready > 0 { return Int(-EINVAL) }
        }
    }

    package func receive(
        _ socket: Int32, _ bytes: UnsafeMutableRawBufferPointer, all: Bool
    ) async -> Int {
        while true {
            let count = Int(cblockio_receive(socket, bytes.baseAddress, bytes.count))
            guard count == Int(-EAGAIN) else { return count }
            let ready = await core.wait { self.sockets.wait(for: socket, .reading, $0) }
            if ready < 0 { return ready }
        }
    }

    package func sendAtOnce(_ socket: Int32, _ parts: UnsafeMutableBufferPointer<iovec>) -> Int? {
        let count = Int(cblockio_send(socket, parts.baseAddress, parts.count))
        return count == Int(-EAGAIN) ? nil : count
    }

    package func send(_ socket: Int32, _ parts: UnsafeMutableBufferPointer<iovec>) async -> Int {
        while true {
            if let count = sendAtOnce(socket, parts) { return count }
            let ready = await core.wait { self.sockets.wait(for: socket, .writing, $0) }
            if ready < 0 { return ready }
        }
    }

    package func hasCached(_ descriptor: Int32, _ range: ByteRange) -> Bool {
        PagePipe.canBeFilled(from: descriptor, range)
    }

    package func fill(_ pipe: PagePipe, from descriptor: Int32, _ range: ByteRange) -> Bool {
        isCurrent && pipe.fill(from: descriptor, range)
    }

    package func sendAtOnce(_ socket: Int32, from pipe: PagePipe) -> Int? { pipe.send(to: socket) }

    package func waitForRoom(_ socket: Int32) async -> Int {
        min(await core.wait { self.sockets.wait(for: socket, .writing, $0) }, 0)
    }

    package func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        await core.perform(body)
    }
}
