package import BackupJobs
package import BlockIO
package import DiskImages
internal import Synchronization

/// The target of a job that goes on: opened as soon as the agent before has let go of it (DATAPATH.md rule 13).
///
/// Nothing is written before `open` has returned. Whoever reads waits until then.
final class ReopeningTarget: JobTarget {
    private struct State {
        var busy: String?
        /// It is to be opened no more.
        var isLeft = false
    }

    /// How long the end of a target may take that is still busy.
    private static let patience = Duration.seconds(2)

    let name: String
    let format: ImageFormat
    let clusterSize: UInt64
    let isProbedRaw = false
    let readsAsZero: Bool
    let resumption: TargetSpec.Resumption?
    var clones: Bool { resumption?.cloneSource != nil }

    private let spec: TargetSpec
    private let opener: any TargetOpener
    private let state = Mutex(State())
    private let opened = OneShot<Result<ReopenedTarget, AgentError>>()

    /// Takes the target's files at once; opens nothing yet.
    init(_ spec: TargetSpec, _ known: TargetSpec.Resumption, opener: any TargetOpener) {
        self.spec = spec
        self.opener = opener
        name = spec.path
        format = spec.format ?? .raw
        clusterSize = known.clusterSize
        readsAsZero = known.readsAsZero
        resumption = known
        opener.reserve(spec)
    }

    var busy: String? { state.withLock { $0.busy } }
    var endedWhileFlushing: Bool {
        if case .success(.open(let target)) = opened.value { target.endedWhileFlushing } else { false }
    }
    var failedOperation: JobIOError.Operation? {
        switch opened.value {
        case .success(.open(let target)): target.failedOperation
        case .failure: .open
        default: nil
        }
    }

    /// Tries until the target is open, or it is known that it never will be. Called once.
    func open() async {
        var pause = Duration.milliseconds(20)
        while true {
            do throws(AgentError) {
                let found = try await opener.reopen(spec)
                let isLeft = state.withLock { state in
                    state.busy = nil
                    return state.isLeft
                }
                switch found {
                // The agent stops: nobody else will close it.
                case .open(let target): if isLeft { await target.leave() }
                case .published: opener.release(spec)
                }
                return opened.fulfil(.success(found))
            } catch {
                let isBusy = error.reason == .targetBusy || error.reason == .targetLocked
                let isLeft = state.withLock { state in
                    state.busy = isBusy ? error.message : nil
                    return state.isLeft
                }
                guard isBusy, !isLeft else {
                    opener.release(spec)
                    return opened.fulfil(.failure(error))
                }
            }
            // Nobody cancels it: what is given up is opened all the same, to be removed.
            try? await Task.sleep(for: pause)
            pause = min(pause * 2, .seconds(1))
        }
    }

    /// What `open` has found; nil when the waiting task is cancelled first.
    func found() async -> Result<ReopenedTarget, AgentError>? { await opened.wait() }

    // MARK: The target

    private func target() async throws(BlockError) -> any JobTarget {
        switch await opened.wait() {
        case .success(.open(let target)): return target
        case .success(.published):
            throw BlockError(.cancelled, "Couldn't use \(name): the target is complete, and is closed")
        case .failure(let error): throw BlockError(.inputOutput, error.message)
        case nil: throw BlockError(.cancelled, "Couldn't use \(name): nobody waits for it any more")
        }
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await target().write(range, from: buffer)
    }

    func writeZeroes(_ range: ByteRange) async throws(BlockError) { try await target().writeZeroes(range) }

    func clone(_ range: ByteRange) async throws(BlockError) { try await target().clone(range) }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try await target().read(range, into: buffer)
    }

    /// Known to the target when that is open.
    var manifestPath: String {
        if case .success(.open(let target)) = opened.value { target.manifestPath } else { "" }
    }

    func putManifest(_ content: [UInt8], isFinal: Bool) async throws(BlockError) {
        try await target().putManifest(content, isFinal: isFinal)
    }

    func prepare() async throws(BlockError) { try await target().prepare() }

    func publish() async throws(BlockError) {
        if case .success(.published) = await opened.wait() { return }
        try await target().publish()
    }

    func abandon(keep: Bool) async { _ = await giveUp(keep: keep) }

    func giveUp(keep: Bool, atOnce: Bool) async -> Bool {
        let end = OneShot<Bool?>()
        let opened = opened
        // Its own: what it waits for may take as long as the agent before takes to die.
        Task {
            switch await opened.wait() {
            case .success(.open(let target)): end.fulfil(await target.giveUp(keep: keep, atOnce: atOnce))
            case .success(.published): end.fulfil(true)
            case .failure, nil: end.fulfil(nil)
            }
        }
        if let isComplete = await end.wait(atMost: Self.patience) ?? nil { return isComplete }
        // It is busy, or cannot be opened: what the agent before has made is removed as soon as that can be.
        if let known = resumption, known.isNew, !keep, !known.isOtherBoot {
            await opener.removeLater(
                TargetLeftover(
                    jobID: spec.jobID, path: spec.path,
                    identity: FileIdentity(fileOn: known.device, inode: known.inode),
                    birthTime: known.birthTime, overwrites: known.overwrites))
        }
        return false
    }

    func leave() async {
        state.withLock { $0.isLeft = true }
        if case .success(.open(let target)) = opened.value { await target.leave() }
    }
}
