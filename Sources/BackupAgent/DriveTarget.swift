internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Synchronization

/// A target that takes everything and keeps nothing: a backup that is verified is only read.
final class NoTarget: JobTarget {
    let name: String
    let format: ImageFormat
    let clusterSize: UInt64 = 65536
    let isProbedRaw = false
    let readsAsZero = true
    let failedOperation: JobIOError.Operation? = nil
    let manifestPath: String

    init(name: String, format: ImageFormat, manifestPath: String) {
        (self.name, self.format, self.manifestPath) = (name, format, manifestPath)
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {}
    func writeZeroes(_ range: ByteRange) async throws(BlockError) {}
    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        throw BlockError(
            .unsupported, "Couldn't read \(range) of \(name): nothing is kept of it", range: range)
    }
    func putManifest(_ content: [UInt8], isFinal: Bool) async throws(BlockError) {}
    func prepare() async throws(BlockError) {}
    func publish() async throws(BlockError) {}
    func abandon(keep: Bool) async {}
    func giveUp(keep: Bool, atOnce: Bool) async -> Bool { false }
    func leave() async {}
}

/// A drive of the agent's own, which a backup is restored to. It is given back when it is flushed, or given up and nothing
/// is on its way to it any more; as with other targets nobody waits for one that hangs.
final class DriveTarget: JobTarget {
    let name: String
    let format: ImageFormat
    let clusterSize: UInt64
    let isProbedRaw = false
    let readsAsZero = false
    let manifestPath = ""

    private let lease: DriveLease
    private let size: UInt64
    private let giveBack: @Sendable () async -> Void
    private let state = Mutex(State())
    private let gone = OneShot<Bool>()

    private struct State {
        var inFlight = 0
        var isGivenUp = false
        var isComplete = false
        var failedOperation: JobIOError.Operation?
        var cleanup: Task<Void, Never>?
        let idle = OneShot<Void>()
    }

    /// `size` is that of what is restored, in bytes; `giveBack` ends the lease.
    init(_ lease: DriveLease, size: UInt64, giveBack: @escaping @Sendable () async -> Void) {
        self.lease = lease
        self.size = size
        self.giveBack = giveBack
        name = lease.image.layers.first?.path ?? lease.id
        format = lease.image.format
        clusterSize = max(4096, lease.image.layers.first?.clusterSize ?? 0)
    }

    var failedOperation: JobIOError.Operation? { state.withLock { $0.failedOperation } }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        let live = lease.live
        try await perform(.write) { () async throws(BlockError) in try await live.write(range, from: buffer) }
    }

    func writeZeroes(_ range: ByteRange) async throws(BlockError) {
        let live = lease.live
        try await perform(.write) { () async throws(BlockError) in
            try await live.writeZeroes(range, mayUnmap: true)
        }
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        let live = lease.live
        try await perform(.read) { () async throws(BlockError) in try await live.read(range, into: buffer) }
    }

    func putManifest(_ content: [UInt8], isFinal: Bool) async throws(BlockError) {}

    func prepare() async throws(BlockError) {
        let (live, size) = (lease.live, size)
        try await perform(.flush) { () async throws(BlockError) in
            if live.size > size {
                try await live.writeZeroes(ByteRange(size..<live.size), mayUnmap: true)
            }
            try await live.flush()
        }
    }

    func publish() async throws(BlockError) {
        try state.withLock { state throws(BlockError) in
            guard !state.isGivenUp else { throw givenUp() }
            state.isComplete = true
        }
        await startCleanup().value
    }

    func abandon(keep: Bool) async { _ = await giveUp(keep: keep) }

    func leave() async { _ = await giveUp(keep: true) }

    /// Waits for the drive whatever is asked for: who hears of the end may use it.
    func giveUp(keep: Bool, atOnce: Bool) async -> Bool {
        let idle = state.withLock { state in
            state.isGivenUp = true
            return state.inFlight == 0 ? state.idle : nil
        }
        idle?.fulfil(())
        _ = startCleanup()
        if let isComplete = await gone.wait(atMost: TargetSession.patience) { return isComplete }
        return state.withLock { $0.isComplete }
    }

    /// Gives the drive back once nothing is on its way to it. The task is the target's own, since what it waits for may hang.
    private func startCleanup() -> Task<Void, Never> {
        state.withLock { state in
            if let cleanup = state.cleanup { return cleanup }
            let (idle, isComplete) = (state.idle, state.isComplete)
            let cleanup = Task {
                if !isComplete { _ = await idle.wait() }
                await self.giveBack()
                self.gone.fulfil(isComplete)
            }
            state.cleanup = cleanup
            return cleanup
        }
    }

    private func perform(
        _ operation: JobIOError.Operation, _ body: @Sendable () async throws(BlockError) -> Void
    ) async throws(BlockError) {
        try state.withLock { state throws(BlockError) in
            guard !state.isGivenUp, !state.isComplete else { throw givenUp() }
            state.inFlight += 1
        }
        defer {
            let idle = state.withLock { state in
                state.inFlight -= 1
                return state.isGivenUp && state.inFlight == 0 ? state.idle : nil
            }
            idle?.fulfil(())
        }
        do throws(BlockError) { try await lease.live.engine.run(body) } catch {
            state.withLock { state in
                if operation.isOfComplete, state.failedOperation == nil { state.failedOperation = operation }
            }
            throw error
        }
    }

    private func givenUp() -> BlockError {
        BlockError(.cancelled, "Couldn't go on with \(name): the restore to it was given up")
    }
}
