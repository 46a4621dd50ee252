package import BlockIO

/// Copies a drive into a target: everything of a run except opening, completing and abandoning the target.
package final class BackupJob: Sendable {
    /// What to copy, and how fast.
    package struct Options: Sendable {
        /// Which clusters are copied.
        package enum Sync: String, Sendable, Hashable {
            /// All; those of the backing files too.
            case full
            /// Those of which any part is allocated in the drive's top layer.
            case top
            /// Only those that the guest overwrites, before it does.
            case none
        }

        /// What happens when old content cannot be saved (SEMANTICS.md §0, on-cbw-error).
        package enum SaveFailure: String, Sendable, Hashable, Codable {
            /// The guest's request goes on; the point in time is lost and the job fails.
            case breakSnapshot
            /// The guest's request fails.
            case breakGuestWrite
        }

        /// What happens when staging is full.
        package enum StagingFull: String, Sendable, Hashable, Codable {
            /// The job fails, the guest goes on.
            case fail
            /// The guest's requests wait for space.
            case stall
        }

        package var sync: Sync
        /// Bytes a second of the drive that are read; 0 is no limit. What is known to be zero costs nothing.
        package var speedBytesPerSecond: Int64
        /// What was never written to the target reads as zeroes: true of a new image without backing file. Where it
        /// is false zeroes are written.
        package var targetReadsAsZero: Bool
        /// How many chunks may be in flight, at least 1; by default as many as the job may have buffers.
        package var depth: Int
        /// The largest read and write in bytes, at least a page; a chunk is a multiple of the cluster as well.
        package var chunkSize: UInt64
        package var saveFailure = SaveFailure.breakSnapshot
        /// How long one piece's saving may take before it counts as failed; zero is for ever.
        package var saveTimeout = Duration.seconds(5)
        package var stagingFull = StagingFull.fail
        /// What staging holds of so many bytes of the drive is given back together; of a cluster, where that is larger.
        var givenBackTogether: UInt64 = 8 << 20
        /// After so many blocks that staging need not hold any more others have their turn.
        var forgottenAtOnce = 256
        /// When a guest counts as one that writes one piece behind the other, and how far before it is copied.
        var sequentialWrites = SequentialWrites.Scale()
        /// What the copy comes to in this time, at its present rate, it comes to soon.
        var soon = Duration.seconds(4)
        /// What happens when the drive cannot be read.
        package var onSourceError = ErrorPolicy.report
        /// What happens when the target cannot be written.
        package var onTargetError = ErrorPolicy.report

        /// What cannot be read is recorded as missing, zero in the target, and the job goes on.
        var ignoresSourceErrors: Bool { onSourceError == .ignore }
        /// Done once, before anything is written to the target; it may hang as a write may, and fail as one.
        package var beforeFirstWrite: (@Sendable () async throws(BlockError) -> Void)?

        package init(
            sync: Sync, speedBytesPerSecond: Int64 = 0, targetReadsAsZero: Bool = false, depth: Int = 6,
            chunkSize: UInt64 = UInt64(BufferPool.bufferSize)
        ) {
            self.sync = sync
            self.speedBytesPerSecond = speedBytesPerSecond
            self.targetReadsAsZero = targetReadsAsZero
            self.depth = depth
            self.chunkSize = chunkSize
        }
    }

    package let drive: LiveDrive
    package let target: any BackupTarget
    package let options: Options
    package let control: JobControl
    let record: JobRecord
    let staging: Staging
    let sums: BlockSums?
    let buffers: BufferShare
    let clock: JobClock
    let requests: TargetRequests
    private let base: (any BlockDevice)?
    let point: PointInTime

    /// The unit of the copy in bytes for a target of that unit: the target's cluster, but at least 64 KiB.
    package static func clusterSize(target: UInt64) -> UInt64 { max(64 << 10, target) }

    package var clusterSize: UInt64 { Self.clusterSize(target: target.clusterSize) }

    /// The largest read in bytes: the largest power of two that is not above a buffer nor the size of a chunk.
    var pieceSize: UInt64 {
        let most = min(UInt64(buffers.bufferSize), options.chunkSize)
        precondition(most >= 4096, "a buffer and a chunk hold at least a page")
        return 1 << UInt64(63 - most.leadingZeroBitCount)
    }

    /// Makes a job that has not begun. `options` set the speed and depth of `control`. `base` is what the drive's top
    /// layer lies on, for `top`; record, staging and `sums` are empty, or those that a killed agent has left (see `resume`),
    /// and stay the caller's to remove. Without `sums` nothing is known of the content afterwards.
    package init(
        drive: LiveDrive, base: (any BlockDevice)? = nil, target: any BackupTarget, options: Options,
        record: JobRecord, staging: Staging, sums: BlockSums? = nil, buffers: BufferPool,
        control: JobControl = JobControl(), clock: JobClock = .system
    ) {
        self.drive = drive
        self.base = base
        self.target = target
        self.options = options
        self.record = record
        self.staging = staging
        self.sums = sums
        self.buffers = buffers.share()
        self.control = control
        self.clock = clock
        requests = TargetRequests(engine: drive.engine)
        point = PointInTime(
            drive: drive, record: record, staging: staging, options: options, control: control, clock: clock,
            clusterSize: Self.clusterSize(target: target.clusterSize))
        control.setSpeed(options.speedBytesPerSecond)
        control.setDepth(options.depth)
        control.begin(total: drive.size)
        precondition(
            sums == nil || pieceSize >= ContentDigests.blockSize,
            "blocks that have digests are read in one piece")
    }

    // MARK: The point in time

    /// How long the engines may take to meet.
    static let meetingLimit = Duration.milliseconds(200)

    /// Fixes the point in time of all these jobs, one for each of as many drives, at one instant, and returns when the last
    /// guest request that was in flight then has ended. From then on old content is saved; `release` ends that.
    ///
    /// Throws `.cancelled` when one of them was cancelled meanwhile, `.failed` when the engines could not meet within 200 ms:
    /// then nothing has begun for any of them.
    package static func fixPointInTime(of jobs: [BackupJob]) async throws(BackupFailure) {
        precondition(
            Set(jobs.map { ObjectIdentifier($0.drive) }).count == jobs.count, "a drive has one job at a time")
        var engines: [any IOEngine] = []
        for job in jobs where !engines.contains(where: { $0 === job.drive.engine }) {
            engines.append(job.drive.engine)
        }
        let all = engines
        let haveMet = await EngineMeeting.hold(all, within: meetingLimit) { position in
            for job in jobs where job.drive.engine === all[position] {
                job.staging.use(job.record.log, driveSize: job.drive.size)
                job.drive.attach(job.point)
            }
        }
        guard haveMet else {
            let drive = jobs.first?.drive
            let message = """
                Couldn't fix the point in time of \(jobs.map(\.drive.name).joined(separator: ", ")): the threads that \
                serve them did not meet within \(meetingLimit) (the host is very busy, or a disk hangs; try again)
                """
            throw .failed(
                IOFailure(
                    .source, .read, drive?.range ?? ByteRange(offset: 0, length: 0),
                    BlockError(.busy, message)))
        }
        for job in jobs { await job.drive.engine.run { job.point.startWatching() } }
        for job in jobs {
            let isSettled = await job.drive.engine.run { await job.waitForBefore() }
            guard isSettled else {
                for job in jobs { await job.letGo() }
                for job in jobs { await job.ended() }
                throw .cancelled
            }
        }
    }

    /// Waits for the requests of before; false when the job is cancelled first.
    private func waitForBefore() async -> Bool {
        while drive.isAnyBefore && !control.isCancelled { await control.signal.raised() }
        return !control.isCancelled
    }

    /// Takes up the point in time of a job whose agent was killed, from its record and staging: before anything else uses
    /// the drive. What was in flight is to copy. Throws `.failed` when it is lost.
    package func resume() async throws(BackupFailure) {
        let failure = await drive.engine.run { () async -> BackupFailure? in
            if record.isBroken { return lost("its point in time was lost before the agent was killed") }
            if record.isFlushing { return lost("the agent was killed while the target was being flushed") }
            do throws(BlockError) {
                guard staging.use(record.log, driveSize: drive.size) else {
                    return lost("its staging is shorter than it was")
                }
                try await staging.recount()
                drive.attach(point)
                try await point.recover()
            } catch {
                return .failed(IOFailure(.staging, .read, drive.range, error))
            }
            point.startWatching()
            control.recovered(copied: point.copiedBytes)
            return nil
        }
        if let failure { throw failure }
    }

    private func lost(_ why: String) -> BackupFailure {
        .failed(
            IOFailure(
                .staging, .read, drive.range,
                BlockError(.inputOutput, "Couldn't go on with the backup of \(drive.name): \(why)")))
    }

    /// Lets the guest go: nothing is saved for this job any more, the view ends, kept discards are passed on. To be called
    /// once the target is complete or given up, and harmless at any other time. Returns at once.
    package func letGo() async { await drive.engine.run { point.letGo() } }

    /// Returns when nothing uses staging and record any more, which the caller may remove then: as late as their last read
    /// or write returns. After `letGo`.
    package func ended() async { await drive.engine.run { await point.ended() } }

    /// Lets the drive be closed in the midst of the job, which goes on in the next agent: when no run is under way and nobody
    /// uses the drive any more. Old content stays where it is. False, and nothing but the clock of late saves has stopped, when somebody still does.
    package func suspend() async -> Bool { await drive.engine.run { point.suspend() } }

    /// Both in a row.
    package func release() async {
        await letGo()
        await ended()
    }

    /// The drive as it was at the point in time, for reading: between `fixPointInTime` and `release`. Fails every read
    /// afterwards, and when the point in time is lost.
    package var view: any BlockDevice { PointInTimeView(point, target: target, base: base) }

    /// What the operator is to know: that staging is getting full, once; and, with `breakGuestWrite`, each old content that
    /// could not be saved. Set before `fixPointInTime`.
    package func onWarning(_ body: @escaping @Sendable (IOFailure) -> Void) async {
        await drive.engine.run { point.state.value.warn = body }
    }

    /// What failed and did not end the job: each range that was left out, each error that has halted the copy (see
    /// `JobControl.isHalted`); set before `fixPointInTime`. Called on the drive's engine.
    package func onError(_ body: @escaping @Sendable (IOFailure, ErrorPolicy.Action) -> Void) async {
        await drive.engine.run { point.state.value.tell = body }
    }

    /// What the target lacks, or will lack, because it could not be read or written.
    package struct Missing: Sendable, Hashable, Codable {
        /// Bytes of the drive.
        package var length: UInt64 = 0
        /// The first ranges, in order.
        package var ranges: [ByteRange] = []

        package init(length: UInt64 = 0, ranges: [ByteRange] = []) {
            self.length = length
            self.ranges = ranges
        }

        /// Both, each byte once; of what neither of them lists it is taken that it is not the same.
        package func joined(with other: Missing) -> Missing {
            var joined = Missing()
            for range in (ranges + other.ranges).sorted(by: { $0.offset < $1.offset }) {
                if let last = joined.ranges.last, range.offset <= last.end {
                    joined.ranges[joined.ranges.count - 1] = ByteRange(last.offset..<max(last.end, range.end))
                } else {
                    joined.ranges.append(range)
                }
            }
            joined.length = joined.listed + unlisted + other.unlisted
            return joined
        }

        private var listed: UInt64 { ranges.reduce(0) { $0 + $1.length } }
        private var unlisted: UInt64 {
            let listed = listed
            return length > listed ? length - listed : 0
        }
    }

    /// What is missing by now, with at most `limit` ranges.
    package func missing(limit: Int) async -> Missing {
        await drive.engine.run { point.missing(limit: limit) }
    }

    // MARK: The copy

    /// Copies until every cluster is in the target (of sync `none`: what the guest has overwritten until `finish`). Call it
    /// once, after `fixPointInTime` or `resume`, from anywhere: the work is done on the drive's engine. The target is
    /// neither completed nor abandoned.
    ///
    /// Throws the first failure, or `.cancelled`, as soon as the reads in flight have ended: requests to the target may then
    /// still be on their way, see `leftBehindEnded`. The guest has been let go by then.
    package func run() async throws(BackupFailure) {
        let loop = CopyLoop(self, point)
        control.began()
        let failure = await withTaskCancellationHandler {
            await drive.engine.run { () async -> BackupFailure? in await loop.run() }
        } onCancel: {
            control.cancel()
        }
        control.ended()
        if let failure { throw failure }
    }

    /// Makes the target durable after `run`, so that `BackupTarget.publish` can complete it. While it is being flushed the
    /// record says so: what a flush that was cut off would have told is not known, and staging may be gone by then
    /// (DATAPATH.md rule 10).
    package func prepare() async throws(BlockError) {
        await drive.engine.run { record.isFlushing = true }
        try await target.prepare()
        await drive.engine.run { record.isFlushing = false }
    }

    /// Whether the job was cancelled or has let go of its drive. On the drive's engine.
    private var isGivenUp: Bool { control.isCancelled || point.state.value.isOver }

    /// A part of what the target holds was cloned: nobody has read it.
    package var isCloned: Bool { record.isCloned }

    /// The digests of what the job has copied, for a manifest; nil without `sums`, and where a part was cloned. After `run`.
    /// Throws `.cancelled` when the job is given up meanwhile.
    package func contentDigests() async throws(BlockError) -> ContentDigests? {
        guard let sums, !record.isCloned else { return nil }
        return try await drive.engine.run { () async throws(BlockError) in
            try await point.using { () async throws(BlockError) in
                var digester = try ExtentDigester(sums, record, isCancelled: { self.isGivenUp })
                return try await digester.compute()
            }
        }
    }

    /// Compares what the job has read with what a manifest says. `restIsZero`: what was not copied reads as zeroes.
    /// After `run` of a job with `sums`. Throws `.cancelled` when the job is given up meanwhile.
    package func damage(
        comparedWith expected: ContentDigests, restIsZero: Bool
    ) async throws(BlockError) -> ContentDamage {
        guard let sums, sums.algorithm == expected.algorithm, sums.driveSize == expected.driveSize else {
            preconditionFailure("what is compared has digests of the same kind")
        }
        return try await drive.engine.run { () async throws(BlockError) in
            try await point.using { () async throws(BlockError) in
                var digester = try ExtentDigester(
                    sums, record, extentSize: expected.extentSize, restIsZero: restIsZero,
                    isCancelled: { self.isGivenUp })
                return try await digester.compare(with: expected)
            }
        }
    }

    /// What an image may claim to hold without the job's own tables becoming a danger: 4 PiB.
    package static let largestDrive: UInt64 = 1 << 52

    /// Returns when no request of this job is on its way to the target any more: at once unless `run` was cancelled.
    package func leftBehindEnded() async {
        let requests = requests
        await drive.engine.run { await requests.allEnded() }
    }
}
