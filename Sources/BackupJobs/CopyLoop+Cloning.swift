internal import BlockIO

// A target that can share the drive's blocks begins with a clone. It is a copy like any other, of very large chunks: the
// drive is read as it is, at some time for each part, and what was saved meanwhile has to be laid over it. So, in one step
// after the clone of a range has ended, its clusters of which nothing is saved by then are done: no guest had changed them,
// since what a guest changes is saved first. The others are to copy again, by the ordinary way: read, laid over, written.
//
//   to copy ─► in flight ─► cloned ─► nothing saved, nothing missing: done
//                                 └─► else: to copy
//
// Two things are different from then on, and the record knows them. The target may hold anything where nothing is done yet,
// what guests wrote later among it: zeroes are written there, though it was new (`isCloning`, from before the first clone
// on). And nobody has read what is done, so that there are no digests (`isCloned`).

extension CopyLoop {
    /// How far the cloning is.
    enum Cloning: Sendable, Hashable {
        /// What comes next begins with this cluster.
        case next(Int)
        case underWay
        /// All was cloned, or the target cannot do it.
        case over
    }

    /// How many bytes are cloned at once. While a range is cloned nobody can write to it, or to all of the drive: the next one
    /// is larger when that took no time, and smaller when a guest may have noticed.
    struct CloneLength: Sendable {
        static let least: UInt64 = 16 << 20
        static let most: UInt64 = 1 << 42
        static let quick = Duration.milliseconds(2)
        static let slow = Duration.milliseconds(8)

        private(set) var bytes: UInt64 = 64 << 20

        mutating func note(_ time: Duration) {
            if time < Self.quick { bytes = min(bytes * 4, Self.most) }
            if time > Self.slow { bytes = max(bytes / 4, Self.least) }
        }
    }

    /// What was never written to the target reads as zeroes.
    var targetReadsAsZero: Bool { options.targetReadsAsZero && !point.record.isCloning }

    /// Starts to clone what comes next from `cluster` on, if pause and depth permit it.
    func startClone(from cluster: Int, _ chunks: inout DiscardingTaskGroup) async {
        let (standing, end) = state.withState { $0.map.run(in: cluster..<point.clusterCount) }
        guard standing == .toCopy else { return noteCloned(upTo: end) }
        // Whole clusters, as all lengths of a clone are multiples of any.
        let range = point.bytes(of: cluster..<end).prefix(state.value.cloneLength.bytes)
        guard control.startChunk() else { return await control.signal.raised() }
        state.value.cloning = .underWay
        start(point.clusters(of: range), &chunks)
    }

    private func start(_ clusters: Range<Int>, _ chunks: inout DiscardingTaskGroup) {
        guard putInFlight(clusters) else { return }
        let range = point.bytes(of: clusters)
        chunks.addTask {
            let wasCloning = point.record.isCloning
            let began = clock.now()
            let failure = await clone(range)
            if case .failed(let failure) = failure, failure.error.code == .unsupported {
                point.record.isCloning = wasCloning
            }
            let copied = settleClone(clusters, failure)
            state.value.cloneLength.note(clock.now() - began)
            // Whatever it was: what cannot be cloned is copied, and an error that stays is met, and told, there.
            if failure == nil { noteCloned(upTo: clusters.upperBound) } else { state.value.cloning = .over }
            control.chunkEnded(copied: copied)
        }
    }

    private func clone(_ range: ByteRange) async -> BackupFailure? {
        if isEnding { return .cancelled }
        // Before the first block is shared: a kill may come at any time.
        point.record.isCloning = true
        return await requests.perform { [target] in
            do throws(BlockError) { try await target.clone(range) } catch {
                return .failed(IOFailure(.target, .write, range, error))
            }
            return nil
        }
    }

    /// In one step, after the clone has ended: in flight -> done, or to copy where something was saved or is missing.
    /// Returns how many bytes are done.
    private func settleClone(_ clusters: Range<Int>, _ failure: BackupFailure?) -> UInt64 {
        let untouched = failure == nil ? untouched(of: clusters) : []
        if !untouched.isEmpty { point.record.setCloned() }
        let done = state.withState { $0.map.finish(untouched, of: clusters) }
        point.noteToCopy(clusters)
        for run in done {
            point.noteDone(run)
            // A save may have begun in vain, and needs not be made any more.
            point.retire(run)
            point.drive.passOnKept(in: point.bytes(of: run))
        }
        return done.reduce(0) { $0 + point.bytes(of: $1).length }
    }

    /// The runs of clusters of which no block is saved or missing.
    private func untouched(of clusters: Range<Int>) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        var next = clusters.lowerBound
        while next < clusters.upperBound {
            let block = point.firstTouched(point.bytes(of: next..<clusters.upperBound))
            let cluster = block.map { $0 / point.blocksPerCluster } ?? clusters.upperBound
            if cluster > next { runs.append(next..<cluster) }
            next = cluster + 1
        }
        return runs
    }

    private func noteCloned(upTo cluster: Int) {
        state.value.cloning = cluster < point.clusterCount ? .next(cluster) : .over
    }
}
