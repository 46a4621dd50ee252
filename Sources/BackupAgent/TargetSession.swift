internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Logging
internal import Synchronization

// A target has an engine, and so threads, of its own: whatever hangs there hangs nobody else. What crosses
// into it are ranges, buffers and a spec, nothing that a process boundary would not carry.
//
// Whether a target becomes complete or is given up is decided once, under the lock, just before it gets its
// name:
//
//   open ─ prepare() ─► flush ─► wait for reads ─► close ─► prepared
//   open, prepared ─ publish() ─► [given up?] ─ no ─► rename, flush the directory ─► complete
//   open ─ giveUp() ──► [renaming?] ─ no ─► wait for what is in flight ─► close, remove ─► gone
//
// Others than the copy read the target, too: those who look at the job's point in time, and they do not know when it
// ends. So every call is counted, and from before the close on none is let in any more: neither the image nor the engine,
// both of which go away, is touched after that.
//
// What is in flight on a target that hangs may never return. Then giveUp returns all the same, and the rest
// (removing the file, releasing the claim, ending the threads) is done by the session's own task when it can
// be.

/// A job's target in this process, which is one of its own (`TargetServer`) or a test's.
final class TargetSession: JobTarget {
    /// How long a target that is given up may take before it is left behind: longer than an agent waits for it
    /// (`TargetProcess.keepingPatience`), so that what it hears is what has happened.
    static let patience = Duration.seconds(4)

    let name: String
    let format: ImageFormat
    let clusterSize: UInt64
    let isProbedRaw: Bool
    let readsAsZero: Bool
    let resumption: TargetSpec.Resumption?
    var clones: Bool { cloneSource != nil }

    private let cloneSource: CloneSource?
    private let device: any BlockDevice
    private let file: HostFile
    private let place: TargetPlace
    private let engine: any IOEngine
    /// The engine is the target's own.
    private let endsEngine: Bool
    private let size: UInt64
    private let window: EngineIsolated<WritebackWindow>
    private let isClosed: EngineIsolated<Bool>
    private let state = Mutex(State())
    private let gone = OneShot<Bool>()

    /// What is left of a target that is not complete.
    private enum Remains {
        case nothing
        /// What is there, flushed as far as that goes.
        case file
        /// What is there, as it is, for the next agent, which flushes it and must be told what that says.
        case asIs
    }

    private struct State {
        /// Calls on the target that have not returned.
        var inFlight = 0
        var isGivenUp = false
        /// The image is being closed, or has been, to be complete.
        var isClosing = false
        var isLeftBehind = false
        /// What becomes of the file of a target that is given up.
        var remains = Remains.nothing
        /// The rename may have happened.
        var isPublishing = false
        var isComplete = false
        var failedOperation: JobIOError.Operation?
        var cleanup: Task<Void, Never>?
        /// Keeps the locks from the closing of the image to the end.
        var lockKeeper: LockKeeper?
        let idle = OneShot<Void>()
        /// `prepare` is the only one that is left, or is to wait no more.
        let isAlone = OneShot<Void>()
    }

    init(
        _ opened: TargetPlace.Image, place: TargetPlace, file: HostFile, keeper: LockKeeper, spec: TargetSpec,
        endsEngine: Bool = true
    ) {
        self.endsEngine = endsEngine
        name = place.path
        device = opened.device
        format = opened.format
        clusterSize = opened.format == .raw ? 4096 : max(opened.clusterSize, 512)
        isProbedRaw = spec.format == nil && opened.format == .raw
        readsAsZero = opened.readsAsZero
        manifestPath = spec.isRestored ? "" : place.manifest.path
        cloneSource = place.isNew && opened.format == .raw ? spec.cloneSource : nil
        resumption = TargetSpec.Resumption(
            device: file.identity.device, inode: file.identity.inode, birthTime: place.birthTime,
            isNew: place.isNew, overwrites: place.overwrites, readsAsZero: opened.readsAsZero,
            clusterSize: clusterSize, backingPath: spec.backing?.path, backingFormat: spec.backing?.format,
            cloneSource: cloneSource)
        self.file = file
        self.place = place
        engine = file.engine
        size = spec.size
        window = EngineIsolated(WritebackWindow(), engine: file.engine)
        isClosed = EngineIsolated(false, engine: file.engine)
        state.withLock { $0.lockKeeper = keeper }
    }

    let manifestPath: String

    /// Most of what is written goes to the disk without being copied. On the engine.
    var bypassesCache: Bool { file.bypassesCache }

    var failedOperation: JobIOError.Operation? { state.withLock { $0.failedOperation } }

    // MARK: Writing

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await perform(.write) { () async throws(BlockError) in
            try await device.write(range, from: buffer)
            for place in try await TargetImage.places(of: range, in: device)
            where !file.bypassesCache(place) {
                try await writeBack(place)
            }
        }
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try await perform(.read) { () async throws(BlockError) in
            try await device.read(range, into: buffer)
            // What the disk has lost since it was written reads as zeroes, or as what was there before.
            if let lost = file.writebackFailure() { throw lost }
        }
    }

    func writeZeroes(_ range: ByteRange) async throws(BlockError) {
        try await perform(.write) { () async throws(BlockError) in
            try await device.writeZeroes(range, mayUnmap: true)
        }
    }

    func clone(_ range: ByteRange) async throws(BlockError) {
        try await perform(.write) { () async throws(BlockError) in
            guard let cloneSource else {
                throw BlockError(.unsupported, "\(name) cannot share the blocks of its drive", range: range)
            }
            try await TargetImage.clone(range, from: cloneSource, in: device)
        }
    }

    func putManifest(_ content: [UInt8], isFinal: Bool) async throws(BlockError) {
        let (manifest, engine) = (place.manifest, engine)
        try await perform(.write) { () async throws(BlockError) in
            try await manifest.stage(content)
            guard !isFinal else { return }
            let published: Result<Void, BlockError> = await engine.blocking {
                Result { () throws(BlockError) in try manifest.publish() }
            }
            try published.get()
        }
    }

    /// Sends what was written on its way to the disk, and waits where too much is on its way. An error here
    /// is one of a flush: the data may be lost (`.dataLost`).
    private func writeBack(_ written: ByteRange) async throws(BlockError) {
        let (start, due) = window.withState { $0.add(written) }
        for range in start { try await file.startWriteback(range) }
        for range in due { try await waitForWriteback(range) }
    }

    /// Whoever waits in the kernel is told of an error when that comes, also after a kill, and nobody is afterwards. So this looks at
    /// the pages, and asks for an error when there is little to wait for: a table of an image in `range` is written again and again.
    private func waitForWriteback(_ range: ByteRange) async throws(BlockError) {
        var rounds = 0
        while true {
            guard let unwritten = file.unwrittenPages(range) else {
                return try await file.waitForWriteback(range)
            }
            if unwritten == 0 || rounds >= 10 && unwritten <= 16 { break }
            rounds += 1
            guard !state.withLock({ $0.isGivenUp }) else { throw givenUp() }
            try await file.startWriteback(range)
            // Only who is cancelled, and nobody waits for any more, is not allowed to sleep.
            guard (try? await Task.sleep(for: .milliseconds(2))) != nil else { break }
        }
        if let lost = file.writebackFailure() { throw lost }
    }

    // MARK: The end

    func prepare() async throws(BlockError) {
        try await perform(.flush) { () async throws(BlockError) in
            // A sector that the drive ends in the middle of: the rest of it belongs to the image. Of a layer that says nothing of
            // it the drive's own image does.
            if device.size > size {
                let rest = ByteRange(size..<device.size)
                if try await device.extents(in: rest).contains(where: \.isAllocated) {
                    try await device.writeZeroes(rest, mayUnmap: true)
                }
            }
            try await device.flush()
        }
        try await perform(.finish) { () async throws(BlockError) in
            // A read that hangs makes this wait as a flush does: until the target is given up.
            let isAlone = state.withLock { $0.isAlone }
            guard await isAlone.wait() != nil, !state.withLock({ $0.isGivenUp }) else { throw givenUp() }
            try await close()
        }
    }

    func publish() async throws(BlockError) {
        try await perform(.finish, evenIfClosed: true) { () async throws(BlockError) in
            try await close()
            guard
                state.withLock({ state in
                    guard !state.isGivenUp else { return false }
                    state.isPublishing = true
                    return true
                })
            else { throw givenUp() }
            let place = place
            let published: Result<Void, BlockError> = await engine.blocking {
                Result { () throws(BlockError) in try place.publish() }
            }
            let isLeftBehind = state.withLock { state in
                // The error itself is thrown below.
                state.isComplete = (try? published.get()) != nil && !state.isLeftBehind
                state.isPublishing = false
                return state.isLeftBehind
            }
            try published.get()
            if isLeftBehind { throw givenUp() }
        }
        await startCleanup().value
    }

    /// Closes the image, once.
    private func close() async throws(BlockError) {
        guard !isClosed.value else { return }
        isClosed.value = true
        try await device.close()
    }

    func abandon(keep: Bool) async { _ = await giveUp(keep: keep) }

    /// Who wants it at once asks a process (`TargetProcess`).
    func giveUp(keep: Bool, atOnce: Bool) async -> Bool { await end(leaving: keep ? .file : .nothing) }

    func leave() async { _ = await end(leaving: .asIs) }

    private func end(leaving remains: Remains) async -> Bool {
        let (isIdle, idle, isAlone) = state.withLock { state in
            if !state.isGivenUp { state.remains = remains }
            state.isGivenUp = true
            return (state.inFlight == 0, state.idle, state.isAlone)
        }
        if isIdle { idle.fulfil(()) }
        isAlone.fulfil(())
        _ = startCleanup()
        if let isComplete = await gone.wait(atMost: Self.patience) { return isComplete }
        return state.withLock { state in
            state.isLeftBehind = !state.isComplete
            return state.isComplete
        }
    }

    /// Closes and removes what is left once nothing is in flight, and gives up the claim. The task is the
    /// session's own, since what it waits for may hang.
    private func startCleanup() -> Task<Void, Never> {
        state.withLock { state in
            if let cleanup = state.cleanup { return cleanup }
            let idle = state.idle
            let isComplete = state.isComplete
            let cleanup = Task {
                if !isComplete { _ = await idle.wait() }
                await self.cleanUp()
            }
            state.cleanup = cleanup
            return cleanup
        }
    }

    private func cleanUp() async {
        let (isComplete, remains) = state.withLock { ($0.isComplete, $0.remains) }
        let place = place
        await engine.run { () async in
            // An error changes nothing any more: nobody counts on what is closed here.
            if remains == .file && !isComplete && !isClosed.value { try? await device.flush() }
            try? await close()  // as above
            if !isComplete && remains != .asIs {
                await engine.blocking {
                    place.discardManifest(keep: remains == .file)
                    if remains == .nothing { place.remove() }
                }
            }
        }
        let keeper = state.withLock { state in
            let keeper = state.lockKeeper
            state.lockKeeper = nil
            return keeper
        }
        if let keeper { await engine.blocking { keeper.close() } }
        place.release()
        if endsEngine { await engine.shutDown() }
        gone.fulfil(isComplete)
    }

    // MARK: Bookkeeping

    /// Runs `body` on the target's engine, unless the target is given up or about to be closed.
    private func perform(
        _ operation: JobIOError.Operation, evenIfClosed: Bool = false,
        _ body: @Sendable () async throws(BlockError) -> Void
    ) async throws(BlockError) {
        try enter(operation, evenIfClosed: evenIfClosed)
        defer { leave() }
        do throws(BlockError) { try await engine.run(body) } catch {
            if operation.isOfComplete { note(operation) }
            throw error
        }
    }

    private func enter(_ operation: JobIOError.Operation, evenIfClosed: Bool) throws(BlockError) {
        let isAlone: OneShot<Void>? = try state.withLock { state throws(BlockError) in
            guard !state.isGivenUp else { throw givenUp() }
            guard !state.isClosing || evenIfClosed else {
                throw BlockError(
                    .cancelled, "Couldn't use \(name): the target is complete or about to be, and is closed")
            }
            state.inFlight += 1
            state.isClosing = operation == .finish
            return state.isClosing && state.inFlight == 1 ? state.isAlone : nil
        }
        isAlone?.fulfil(())
    }

    private func leave() {
        let (idle, isAlone) = state.withLock { state in
            state.inFlight -= 1
            return (
                state.isGivenUp && state.inFlight == 0 ? state.idle : nil,
                state.isClosing && state.inFlight == 1 ? state.isAlone : nil
            )
        }
        idle?.fulfil(())
        isAlone?.fulfil(())
    }

    private func note(_ operation: JobIOError.Operation) {
        state.withLock { state in
            if state.failedOperation == nil { state.failedOperation = operation }
        }
    }

    private func givenUp() -> BlockError {
        BlockError(.cancelled, "Couldn't go on with \(name): the target was given up")
    }
}
