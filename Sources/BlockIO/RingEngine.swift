internal import CBlockIO
package import Glibc
internal import Synchronization

/// An engine of one thread with an io_uring.
///
/// A turn of its thread runs the jobs that are there, submits the requests they made with one system call, and resumes
/// those whose requests have completed; it sleeps in the same call when there is nothing to do. Other threads wake it
/// through an eventfd that the ring reads. Call `shutDown` when it is no longer needed: its thread keeps it alive until
/// then.
package final class RingEngine: IOEngine {
    package let name: String

    private let core: EngineCore
    package let owner: EngineOwner
    // SAFETY: touched by the engine's thread only, after it has started; `start` and `work` check that.
    private nonisolated(unsafe) let ring: RingQueue
    // SAFETY: as `ring`; `isCurrent` is asked before every use.
    private nonisolated(unsafe) let inline = InlineTransfers()
    // SAFETY: as `ring`.
    private nonisolated(unsafe) var vigil = Vigil()
    /// `expectMore` was called since the thread waited last.
    // SAFETY: as `inline`.
    private nonisolated(unsafe) var isMoreExpected = false
    /// Who let others in, and goes on in one of the next turns.
    // SAFETY: as `inline`.
    private nonisolated(unsafe) var polite: [UnsafeContinuation<Void, Never>] = []
    /// Who waits for something to happen, or for the shortest of these times to pass.
    // SAFETY: as `inline`.
    private nonisolated(unsafe) var pausing:
        [(nanoseconds: UInt64, continuation: UnsafeContinuation<Bool, Never>)] = []
    /// How many turns the thread has made.
    // SAFETY: as `inline`.
    private nonisolated(unsafe) var turns = 0
    private let wakeDescriptor: Int32
    private let shared = Atomic(false)

    /// How many turns of jobs may pass before the kernel is asked for completions.
    private static let roundsPerTurn = 8

    /// Starts the engine's thread. Throws `.unsupported` or `.denied` where the system refuses io_uring.
    /// `queueDepth` is the number of requests that are submitted at once, up to 4096; four times as many can be in
    /// flight, more wait in order. A descriptor that is `held` stays open until all requests have ended, also those that outlive
    /// the process: the disk may still be reading memory that others share.
    package init(name: String, queueDepth: Int = 256, holding held: Int32? = nil) throws(BlockError) {
        let wakeDescriptor = cblockio_eventfd()
        guard wakeDescriptor >= 0 else {
            throw BlockError("Couldn't make an eventfd for a ring", errno: -wakeDescriptor)
        }
        do throws(BlockError) {
            ring = try RingQueue(depth: queueDepth, holding: held)
        } catch {
            _ = cblockio_close(wakeDescriptor)
            throw error
        }
        self.name = "ring \(name)"
        self.wakeDescriptor = wakeDescriptor
        core = EngineCore(name: name) { cblockio_eventfd_signal(wakeDescriptor) }
        owner = core.queue.owner
        guard let thread = startThread(named: "ring \(name)", { self.work() }) else {
            preconditionFailure("the system gives no thread for the engine \(name)")
        }
        pthread_detach(thread)
    }

    deinit { _ = cblockio_close(wakeDescriptor) }

    // MARK: Executor

    package var isCurrent: Bool { owner.isCurrent }

    package func enqueue(_ job: consuming ExecutorJob) { core.add(.job(UnownedJob(job))) }

    package func checkIsolated() { preconditionCurrent() }

    package func isIsolatingCurrentContext() -> Bool? { isCurrent }

    package func expectMore() { if isCurrent { isMoreExpected = true } }

    package func letOthersIn() async -> Int {
        guard isCurrent else {
            await Task.yield()
            return 1
        }
        // What they are to do next has its turn before whoever lets others in goes on.
        endPauses(whole: false)
        let before = turns
        await withUnsafeContinuation { polite.append($0) }
        return turns - before
    }

    package func pause(nanoseconds: UInt64) async -> Bool {
        guard isCurrent, !isShared, polite.isEmpty, !isMoreExpected else { return false }
        return await withUnsafeContinuation { pausing.append((nanoseconds, $0)) }
    }

    package var writesAsynchronously: Bool { true }

    package func share() { shared.store(true, ordering: .relaxed) }

    /// `share` was called: the thread writes nothing by itself.
    package var isShared: Bool { shared.load(ordering: .relaxed) }

    package func shutDown() async { await core.shutDown() }

    private func work() {
        core.queue.becomeCurrent()
        ring.start(wakeDescriptor: wakeDescriptor)
        let executor = asUnownedTaskExecutor()
        var batch: [JobQueue.Entry] = []
        while true {
            inline.beginTurn()
            core.runJobs(rounds: Self.roundsPerTurn, on: executor, &batch)
            let isIdle = polite.isEmpty && pausing.isEmpty && ring.inFlight == 0
            if isIdle && core.closeIfDone() { break }
            var wasWhole = false
            if polite.isEmpty, core.queue.fallAsleep() {
                if pausing.isEmpty { rest() } else { wasWhole = doze() }
                core.queue.wake()
            } else {
                ring.submit(wait: false)
            }
            ring.resumeCompleted()
            turns &+= 1
            endPauses(whole: wasWhole)
            // One in a turn: what completes waits for one long step, however many take them.
            if !polite.isEmpty { polite.removeFirst().resume() }
        }
        ring.end()
        core.finish()
    }

    private func doze() -> Bool {
        isMoreExpected = false
        return ring.doze(nanoseconds: pausing.reduce(.max) { min($0, $1.nanoseconds) })
    }

    private func endPauses(whole: Bool) {
        guard !pausing.isEmpty else { return }
        for (_, continuation) in pausing { continuation.resume(returning: whole) }
        pausing.removeAll(keepingCapacity: true)
    }

    /// Waits for something to complete: awake, where that is likely to be soon, else asleep.
    private func rest() {
        let began = cblockio_now()
        let length = isMoreExpected ? vigil.length() : 0
        isMoreExpected = false
        let sawIt = length > 0 ? ring.watch(nanoseconds: length) : nil
        ring.submit(wait: true)
        vigil.ended(after: cblockio_now() - began, sawIt: sawIt)
    }

    // MARK: Operations

    /// Hands a request to the ring and resumes when it has completed. What is urgent does not wait for the end of the turn:
    /// the disk works on it while the thread makes the next one. (Reads; writes cost less when they go together.)
    private func perform(_ request: RingQueue.Request, isUrgent: Bool = false) async -> Int {
        // SAFETY: the memory in the request is the caller's, who leaves it alone until this returns.
        nonisolated(unsafe) let request = request
        return await withUnsafeContinuation { continuation in
            if isCurrent {
                ring.add(request, .task(continuation))
                if isUrgent { ring.submit(wait: false) }
            } else {
                // A caller on another executor, an actor of its own: allowed, at the price of a change of thread.
                core.add(.call { self.ring.add(request, .task(continuation)) })
            }
        }
    }

    package func readAtOnce(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) -> Int? {
        isCurrent ? inline.read(descriptor, bytes, at: offset) : nil
    }

    package func read(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) async -> Int {
        if let count = readAtOnce(descriptor, bytes, at: offset) { return count }
        return await perform(reading(descriptor, bytes, at: offset))
    }

    package func readDirectly(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) async -> Int {
        await perform(reading(descriptor, bytes, at: offset), isUrgent: true)
    }

    package func beginRead(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64, past: Bool,
        _ done: @escaping @Sendable (Int) -> Void
    ) -> Bool {
        guard isCurrent else { return false }
        ring.add(reading(descriptor, bytes, at: offset), .call(done))
        if past { ring.submit(wait: false) }
        return true
    }

    package func beginWrite(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64,
        _ done: @escaping @Sendable (Int) -> Void
    ) -> Bool {
        guard isCurrent else { return false }
        ring.add(writing(descriptor, bytes, at: offset), .call(done))
        return true
    }

    package func callSoon(_ body: @escaping @Sendable () -> Void) { core.add(.call(body)) }

    private func reading(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) -> RingQueue.Request {
        RingQueue.Request(
            operation: CBLOCKIO_READ, descriptor: descriptor, address: bytes.baseAddress, message: nil,
            offset: offset, length: UInt64(bytes.count), flags: 0, token: 0)
    }

    package func writeAtOnce(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64
    ) -> Int? {
        // Where the file is being flushed or punched a write may have to wait, and that is not the thread's work; nor is
        // it to wait for a file system that is frozen while others have drives here, too.
        guard isCurrent, !isShared, !ring.isHeld(descriptor) else { return nil }
        return inline.write(descriptor, bytes, at: offset)
    }

    package func writeQuickly(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64
    ) async -> Int {
        if bytes.count <= InlineTransfers.maximumQuickWrite,
            let count = writeAtOnce(descriptor, bytes, at: offset)
        {
            return count
        }
        return await write(descriptor, bytes, at: offset)
    }

    package func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int {
        await perform(writing(descriptor, bytes, at: offset))
    }

    private func writing(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64
    ) -> RingQueue.Request {
        RingQueue.Request(
            operation: CBLOCKIO_WRITE, descriptor: descriptor,
            address: UnsafeMutableRawPointer(mutating: bytes.baseAddress), message: nil,
            offset: offset, length: UInt64(bytes.count), flags: 0, token: 0)
    }

    package func synchronize(_ descriptor: Int32, dataOnly: Bool) async -> Int {
        await perform(
            RingQueue.Request(
                operation: dataOnly ? CBLOCKIO_FDATASYNC : CBLOCKIO_FSYNC, descriptor: descriptor,
                address: nil, message: nil, offset: 0, length: 0, flags: 0, token: 0))
    }

    package func allocate(_ descriptor: Int32, mode: Int32, _ range: ByteRange) async -> Int {
        await perform(
            RingQueue.Request(
                operation: CBLOCKIO_FALLOCATE, descriptor: descriptor, address: nil, message: nil,
                offset: range.offset, length: range.length, flags: UInt32(bitPattern: mode), token: 0))
    }

    package func synchronizeRange(_ descriptor: Int32, _ range: ByteRange, flags: UInt32) async -> Int {
        // The ring's request has 32 bits for the length; longer ranges go in pieces.
        var rest = range
        while rest.length > 1 << 30 {
            let piece = rest.prefix(1 << 30)
            let result = await synchronizeRange(descriptor, piece, flags: flags)
            if result != 0 { return result }
            rest = rest.dropFirst(piece.length)
        }
        return await perform(
            RingQueue.Request(
                operation: CBLOCKIO_SYNC_FILE_RANGE, descriptor: descriptor, address: nil, message: nil,
                offset: rest.offset, length: rest.length, flags: flags, token: 0))
    }

    package func accept(_ listener: Int32) async -> Int {
        while true {
            let result = Int(cblockio_accept(listener))
            guard result == Int(-EAGAIN) else { return result }
            // A request to accept would come back at once from a non-blocking listener; one that is not could hold the
            // thread when a client goes away between the wake-up and the call.
            let ready = await perform(polling(listener, POLLIN))
            guard ready >= 0 || ready == Int(-EINTR) else { return ready }
            // A non-blocking accept(2) does not say of every kind of socket that it was shut down.
            if ready >= 0, ready & Int(POLLHUP | POLLERR) != 0 { return Int(-EINVAL) }
        }
    }

    package func receive(
        _ socket: Int32, _ bytes: UnsafeMutableRawBufferPointer, all: Bool
    ) async -> Int {
        await perform(
            RingQueue.Request(
                operation: CBLOCKIO_RECEIVE, descriptor: socket, address: bytes.baseAddress, message: nil,
                offset: 0, length: UInt64(bytes.count), flags: all ? 1 : 0, token: 0))
    }

    package func sendAtOnce(_ socket: Int32, _ parts: UnsafeMutableBufferPointer<iovec>) -> Int? {
        isCurrent ? inline.send(socket, parts) : nil
    }

    package func send(_ socket: Int32, _ parts: UnsafeMutableBufferPointer<iovec>) async -> Int {
        if let count = sendAtOnce(socket, parts) { return count }
        return await perform(
            RingQueue.Request(
                operation: CBLOCKIO_SEND, descriptor: socket, address: parts.baseAddress, message: nil,
                offset: 0, length: UInt64(parts.count), flags: 0, token: 0))
    }

    package func hasCached(_ descriptor: Int32, _ range: ByteRange) -> Bool {
        PagePipe.canBeFilled(from: descriptor, range)
    }

    package func fill(_ pipe: PagePipe, from descriptor: Int32, _ range: ByteRange) -> Bool {
        isCurrent && inline.fill(pipe, from: descriptor, range)
    }

    package func sendAtOnce(_ socket: Int32, from pipe: PagePipe) -> Int? {
        isCurrent ? pipe.send(to: socket) : nil
    }

    package func waitForRoom(_ socket: Int32) async -> Int { min(await perform(polling(socket, POLLOUT)), 0) }

    private func polling(_ descriptor: Int32, _ events: Int32) -> RingQueue.Request {
        RingQueue.Request(
            operation: CBLOCKIO_POLL, descriptor: descriptor, address: nil, message: nil, offset: 0,
            length: 0,
            flags: UInt32(bitPattern: events), token: 0)
    }

    package func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        await core.perform(body)
    }
}
