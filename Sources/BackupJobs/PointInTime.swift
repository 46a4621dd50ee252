internal import BlockIO

// What is kept of a drive as it was at one instant, and the order in which that stays true.
//
// A block (4 KiB) of the drive is at any time one of: unchanged on the drive since the instant; *saved*, its old content
// in staging; *missing*, its old content unreadable. A cluster (the unit of the copy) may be *done*, the target has it, or
// *not needed*: then its blocks are of no interest any more. All of that is in the record; this class is who changes it.
// The steps between two awaits are atomic, everything runs on the drive's engine.
//
// The proof rests on the order: old content read -> in staging (write returned) -> saved set -> the guest's request goes
// to the drive. So whoever reads the drive first and looks at `saved` afterwards has either read the old content or finds
// it in staging. When a save fails, *broken* is set in the record before an unsaved request goes on.

/// The point in time of one job: what must be saved before it changes, what was, and where.
final class PointInTime: Sendable {
    /// Blocks that are being saved.
    struct Save {
        let number: UInt64
        let blocks: Range<Int>
        let began: Duration
        var isLate = false
        var task: Task<Void, Never>?
        /// Requests that wait until the blocks are saved or given up.
        var waiters: [UnsafeContinuation<BlockError?, Never>] = []
        /// Who waits for its end, however late.
        var ends: [UnsafeContinuation<Void, Never>] = []
    }

    struct State {
        var saves: [Save] = []
        var nextSave: UInt64 = 0
        /// The save that has ended last, and the error that fails the requests that wait for it.
        var lastEnded: (number: UInt64, error: BlockError?) = (.max, nil)
        /// The job has ended, or has no use for the old content any more.
        var isOver = false
        /// Why the point in time is lost.
        var failure: IOFailure?
        var urgent = UrgentClusters()
        /// How far from them the copy is.
        var distance = CopyDistance()
        /// What guests are about to overwrite.
        var writes: SequentialWrites
        /// How many readers of the view use the staging of a cluster.
        var pins: [Int: Int] = [:]
        /// Clusters that are done and whose part of staging waits to be given back with that of others.
        var retired: RetiredClusters
        /// When space was given back last, while there is a task that does; nil without one.
        var lastGivenBack: Duration?
        /// Clusters that were to be given back while they were pinned.
        var unpunched: Set<Int> = []
        /// Reads and writes of staging in flight, and the view's reads of the drive.
        var stagingUsers = 0
        /// Who waits for space, or for the users of staging to end.
        var waiters = Waiters()
        var hasWarned = false
        /// How many blocks were forgotten since others had their turn.
        var forgottenInTurn = 0
        /// There is a task that sends on what staging has in memory.
        var isSendingOn = false
        /// When that failed last.
        var lastSendFailure: Duration?
        /// The copy waits for the time at which its speed lets it go on, or for a chunk to end: what is saved meanwhile it
        /// finds then, and needs not be woken for.
        var needsNoSaves = false
        /// The copy has begun: what staging holds is being given back.
        var isCopying = false
        var spaceLook: Task<Void, Never>?
        var warn: @Sendable (IOFailure) -> Void = { _ in }
        var tell: @Sendable (IOFailure, ErrorPolicy.Action) -> Void = { _, _ in }
        var watchdog: Task<Void, Never>?
    }

    let drive: LiveDrive
    let record: JobRecord
    let staging: Staging
    let options: BackupJob.Options
    let control: JobControl
    let clock: JobClock
    let clusterSize: UInt64
    let clusterCount: Int
    let state: EngineIsolated<State>
    private let shift: UInt64

    init(
        drive: LiveDrive, record: JobRecord, staging: Staging, options: BackupJob.Options,
        control: JobControl,
        clock: JobClock, clusterSize: UInt64
    ) {
        precondition(
            record.driveSize == drive.size && record.clusterSize == clusterSize, "a record is that of its job"
        )
        self.drive = drive
        self.record = record
        self.staging = staging
        self.options = options
        self.control = control
        self.clock = clock
        self.clusterSize = clusterSize
        shift = UInt64(clusterSize.trailingZeroBitCount)
        clusterCount = Int(drive.size.dividedRoundingUp(by: clusterSize))
        let retired = RetiredClusters(
            clustersPerStretch: max(1, Int(options.givenBackTogether / clusterSize)))
        state = EngineIsolated(
            State(writes: SequentialWrites(options.sequentialWrites), retired: retired), engine: drive.engine)
    }

    // MARK: Places

    func clusters(of range: ByteRange) -> Range<Int> {
        Int(range.offset >> shift)..<Int((range.end + clusterSize - 1) >> shift)
    }

    func bytes(of clusters: Range<Int>) -> ByteRange {
        ByteRange(
            UInt64(clusters.lowerBound) << shift..<min(drive.size, UInt64(clusters.upperBound) << shift))
    }

    func bytes(ofBlocks blocks: Range<Int>) -> ByteRange {
        let unit = JobRecord.blockSize
        return ByteRange(UInt64(blocks.lowerBound) * unit..<min(drive.size, UInt64(blocks.upperBound) * unit))
    }

    func blocks(of range: ByteRange) -> Range<Int> {
        Int(range.offset / JobRecord.blockSize)..<Int(range.end.dividedRoundingUp(by: JobRecord.blockSize))
    }

    func clusters(ofBlocks blocks: Range<Int>) -> Range<Int> {
        blocks.lowerBound / blocksPerCluster..<(blocks.upperBound - 1) / blocksPerCluster + 1
    }

    var blocksPerCluster: Int { Int(clusterSize / JobRecord.blockSize) }

    // MARK: What needs saving

    /// Told of each write and zero of the guest once.
    func noteWrite(_ range: ByteRange) { state.withState { $0.writes.note(range) } }

    /// Must a block of the cluster be saved before it changes?
    func isProtected(_ cluster: Int) -> Bool {
        guard !state.value.isOver, !record.isBroken else { return false }
        if record.bits.done.isSet(cluster) || record.bits.notNeeded.isSet(cluster) { return false }
        return !record.isCancelled || record.bits.frozen.isSet(cluster)
    }

    /// The first part of `range` whose clusters are all needed, or all not.
    func firstPart(of range: ByteRange) -> (part: ByteRange, isNeeded: Bool) {
        let clusters = clusters(of: range)
        guard !clusters.isEmpty else { return (range, false) }
        let isNeeded = isProtected(clusters.lowerBound)
        let end = endOfRun(clusters, isNeeded)
        return (
            range.clamped(to: ByteRange(range.offset..<max(range.offset, UInt64(end) << shift))), isNeeded
        )
    }

    /// Something of the drive is still to be saved when it is overwritten.
    var isAnythingProtected: Bool {
        let (part, isNeeded) = firstPart(of: drive.range)
        return drive.size > 0 && (isNeeded || part.length < drive.size)
    }

    private func endOfRun(_ clusters: Range<Int>, _ isNeeded: Bool) -> Int {
        let bits = record.bits
        var next = clusters.lowerBound + 1
        if state.value.isOver || record.isBroken { return clusters.upperBound }
        while next < clusters.upperBound {
            let rest = next..<clusters.upperBound
            if isNeeded && !record.isCancelled {
                let end = bits.done.first(in: rest) ?? rest.upperBound
                return bits.notNeeded.first(in: next..<end) ?? end
            } else if isNeeded {
                guard isProtected(next) else { return next }
                next += 1
            } else if isProtected(next) {
                return next
            } else if bits.done.isSet(next) {
                next = bits.done.first(in: rest, where: false) ?? rest.upperBound
            } else if bits.notNeeded.isSet(next) {
                next = bits.notNeeded.first(in: rest, where: false) ?? rest.upperBound
            } else {
                // After the good end of `none`: what is not frozen.
                next = bits.frozen.first(in: rest) ?? rest.upperBound
            }
        }
        return clusters.upperBound
    }

    /// Whether staging or the list of what is missing has to be looked at for any part of `range`.
    func isTouched(_ range: ByteRange) -> Bool { firstTouched(range) != nil }

    func isTouched(_ cluster: Int) -> Bool {
        let first = cluster * blocksPerCluster
        let blocks = first..<min(first + blocksPerCluster, record.bits.saved.count)
        return record.bits.saved.isAnySet(in: blocks) || record.bits.missing.isAnySet(in: blocks)
    }

    /// The first block of `range` that is saved or missing.
    func firstTouched(_ range: ByteRange) -> Int? {
        let blocks = blocks(of: range)
        let saved = record.bits.saved.first(in: blocks)
        let missing = record.bits.missing.first(in: blocks.lowerBound..<(saved ?? blocks.upperBound))
        return missing ?? saved
    }

    /// Looks up whether a cluster is needed (`top`), and records it for the whole of it; what was recorded first stands.
    func lookUpNeed(_ cluster: Int) async {
        var (rest, isAllocated) = (bytes(of: cluster..<cluster + 1), false)
        do throws(BlockError) {
            while !rest.isEmpty && !isAllocated {
                for extent in try await drive.device.extents(in: rest) {
                    isAllocated = isAllocated || extent.isAllocated
                    rest = rest.dropFirst(extent.range.end - rest.offset)
                }
            }
        } catch {
            // What cannot be told is copied: too much is right, too little is not.
            isAllocated = true
        }
        noteNeed(cluster..<cluster + 1, isNeeded: isAllocated)
    }

    /// Records for clusters of which nothing is known yet whether they are needed.
    func noteNeed(_ clusters: Range<Int>, isNeeded: Bool) {
        var next = clusters.lowerBound
        while let first = record.bits.needKnown.first(in: next..<clusters.upperBound, where: false) {
            let end = record.bits.needKnown.first(in: first..<clusters.upperBound) ?? clusters.upperBound
            do throws(BlockError) {
                try record.bits.needKnown.reserve(first..<end)
                if !isNeeded { try record.bits.notNeeded.reserve(first..<end) }
            } catch {
                return lose(error, .write, bytes(of: clusters))
            }
            if !isNeeded { record.bits.notNeeded.set(first..<end) }
            record.bits.needKnown.set(first..<end)
            next = end
        }
        if !isNeeded { noteDone(clusters) }
    }

    // MARK: The end

    /// The point in time is lost: recorded before anything that was not saved goes on.
    func lose(
        _ error: BlockError, _ operation: IOFailure.Operation, _ range: ByteRange,
        side: IOFailure.Side = .staging
    ) {
        guard !record.isBroken else { return }
        record.setBroken()
        state.value.failure = IOFailure(side, operation, range, error)
        wakeAll()
        control.signal.raise()
    }

    /// Nothing needs saving any more: the guest is let go at once. Where something still was to be saved, the point in time
    /// is lost with this, and the record says so first.
    func letGo() {
        guard !state.value.isOver else { return }
        if isAnythingProtected { record.setBroken() }
        state.value.isOver = true
        wakeAll()
        drive.detach(self)
    }

    /// The next agent goes on from the record. False while the copy runs, or a request of the guest or a save is in flight. Nobody
    /// watches any more in any case: what sleeps must not wake up when the engine has ended.
    func suspend() -> Bool {
        state.value.watchdog?.cancel()
        guard !state.value.isOver, !control.isRunning, state.value.saves.isEmpty, drive.forget(self) else {
            return false
        }
        state.value.isOver = true
        return true
    }

    /// Returns when nothing uses staging any more: as late as its last read or write returns. After `letGo`.
    func ended() async {
        state.value.watchdog?.cancel()
        while state.value.stagingUsers > 0 { await change() }
        await state.value.watchdog?.value
        state.value.watchdog = nil
    }

    func startWatching() {
        state.value.watchdog = Task(executorPreference: drive.engine) { await self.watch() }
    }

    /// After a restart: a kill may have come between *done* and the punch, or between a write to staging and *saved*; and
    /// the order of what was saved is lost.
    func recover() async throws(BlockError) {
        for clusters in record.bits.done.runs(in: 0..<clusterCount) {
            record.bits.frozen.clear(clusters)
            await punch(clusters)
        }
        await punchUnsaved(0..<blocks(of: drive.range).upperBound)
        state.value.urgent.isIncomplete = true
    }

    /// Finds clusters with saved or missing blocks that are still to copy, from the start of the drive, as many as fit.
    func refillUrgent() {
        state.value.urgent.isIncomplete = false
        forEachTouched { cluster in
            state.value.urgent.append(cluster)
            return !state.value.urgent.isIncomplete
        }
    }

    /// Goes over the clusters that are not done and have saved or missing blocks, until `body` says false.
    private func forEachTouched(_ body: (Int) -> Bool) {
        let bits = record.bits
        var next = 0
        while next < clusterCount {
            if bits.done.isSet(next) {
                next = bits.done.first(in: next..<clusterCount, where: false) ?? clusterCount
            } else {
                guard let block = firstTouched(bytes(of: next..<clusterCount)) else { return }
                let cluster = block / blocksPerCluster
                if !bits.done.isSet(cluster), !body(cluster) { return }
                next = cluster + 1
            }
        }
    }

    /// Clusters that were in flight are to copy: those of which the guest has overwritten something are urgent again.
    func noteToCopy(_ clusters: Range<Int>) {
        var next = clusters.lowerBound
        while next < clusters.upperBound, let block = firstTouched(bytes(of: next..<clusters.upperBound)) {
            let cluster = block / blocksPerCluster
            state.value.urgent.append(cluster)
            next = cluster + 1
        }
    }

    /// Before clusters become done: records what the target lacks of them. Throws when the record has no space.
    func noteLacking(_ blocks: [Range<Int>]) throws(BlockError) {
        for run in blocks { try reserve(&record.bits.missing, run) }
        for run in blocks { record.bits.missing.set(run) }
    }

    /// After clusters have become done: what became unreadable when it had been copied already is not missing. (In this
    /// order, so that a kill in between makes a backup look worse than it is, not better.)
    func forgetMissing(in clusters: Range<Int>, but lacking: [Range<Int>]) {
        let runs = record.bits.missing.runs(in: blocks(of: bytes(of: clusters)))
        guard !runs.isEmpty else { return }
        let kept = Set(lacking.joined())
        for block in runs.joined() where !kept.contains(block) {
            record.bits.missing.clear(block..<block + 1)
        }
    }

    /// What is missing, with at most `limit` ranges.
    func missing(limit: Int) -> BackupJob.Missing {
        let blocks = blocks(of: drive.range)
        var missing = BackupJob.Missing()
        var next = blocks.lowerBound
        while let first = record.bits.missing.first(in: next..<blocks.upperBound) {
            next = record.bits.missing.first(in: first..<blocks.upperBound, where: false) ?? blocks.upperBound
            let range = bytes(ofBlocks: first..<next)
            missing.length += range.length
            if missing.ranges.count < limit { missing.ranges.append(range) }
        }
        return missing
    }

    /// What the target holds, in bytes.
    var copiedBytes: UInt64 {
        record.bits.done.runs(in: 0..<clusterCount).reduce(0) { $0 + bytes(of: $1).length }
    }

    /// The last request of before has ended.
    func beforeEnded() { control.signal.raise() }

    /// A job of sync `none` ends well: what is saved by now, or being saved, is still copied and nothing else saved.
    func freeze() {
        guard !record.isCancelled else { return }
        var failure: BlockError?
        func freeze(_ cluster: Int) -> Bool {
            do throws(BlockError) {
                try record.bits.frozen.reserve(cluster..<cluster + 1)
                record.bits.frozen.set(cluster..<cluster + 1)
                return true
            } catch {
                failure = error
                return false
            }
        }
        forEachTouched(freeze)
        for save in state.value.saves {
            for cluster in clusters(ofBlocks: save.blocks) where !record.bits.done.isSet(cluster) {
                _ = freeze(cluster)
            }
        }
        if let failure { return lose(failure, .write, drive.range) }
        record.setCancelled()
        wakeAll()
    }

    /// After `freeze`: a cluster that is still to be copied, in the order of the drive.
    func firstFrozen(after cluster: Int) -> Int? { record.bits.frozen.first(in: cluster..<clusterCount) }

    /// Clusters are done: whoever waits for one of their blocks to be saved need not any more.
    func noteDone(_ clusters: Range<Int>) {
        if record.isCancelled { record.bits.frozen.clear(clusters) }
        giveBackWhole(clusters)
        guard !state.value.saves.isEmpty else { return }
        let blocks = clusters.lowerBound * blocksPerCluster..<clusters.upperBound * blocksPerCluster
        state.withState { state in
            for index in state.saves.indices where state.saves[index].blocks.overlaps(blocks) {
                for waiter in state.saves[index].waiters { waiter.resume(returning: nil) }
                state.saves[index].waiters = []
            }
        }
    }

    // MARK: Waiting

    func change() async {
        await withUnsafeContinuation { continuation in state.value.waiters.add(continuation) }
    }

    private func wakeAll() {
        state.withState { state in
            state.waiters.wake()
            for index in state.saves.indices {
                for waiter in state.saves[index].waiters { waiter.resume(returning: nil) }
                state.saves[index].waiters = []
            }
        }
    }

    /// Uses staging, record or sums, which are not removed meanwhile. Throws `.cancelled` when the job has let go: they may
    /// be gone.
    func using<Value>(_ body: () async throws(BlockError) -> Value) async throws(BlockError) -> Value {
        guard !state.value.isOver else {
            throw BlockError(
                .cancelled, "Couldn't use the files of the backup of \(drive.name): it was given up")
        }
        beginUse()
        defer { endUse() }
        return try await body()
    }

    func beginUse() { state.value.stagingUsers += 1 }

    func endUse() {
        state.withState { state in
            state.stagingUsers -= 1
            if state.stagingUsers == 0 { state.waiters.wake() }
        }
    }
}
