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
        package enum SaveFailure: String, Sendable, Hashable {
            /// The guest's request goes on; the point in time is lost and the job fails.
            case breakSnapshot
            /// The guest's request fails.
            case breakGuestWrite
        }

        /// What happens when staging is full.
        package enum StagingFull: String, Sendable, Hashable {
            /// The job fails, the guest goes on.
            case fail
            /// The guest's requests wait for space.
            case stall
        }

        package var saveFailure = SaveFailure.breakSnapshot
        /// How long one piece's saving may take before it counts as failed; zero is for ever.
        package var saveTimeout = Duration.seconds(5)
        package var stagingFull = StagingFull.fail

        package var sync: Sync
        /// Bytes a second of the drive that are read; 0 is no limit. What is known to be zero costs nothing.
        package var speedBytesPerSecond: Int64
        /// What was never written to the target reads as zeroes: true of a new image without backing file. Where it
        /// is false zeroes are written.
        package var targetReadsAsZero: Bool
        /// How many chunks may be in flight, at least 1.
        package var depth: Int
        /// The largest read and write in bytes, at least a page; a chunk is a multiple of the cluster as well.
        package var chunkSize: UInt64

        package init(
            sync: Sync, speedBytesPerSecond: Int64 = 0, targetReadsAsZero: Bool = false, depth: Int = 16,
            chunkSize: UInt64 = 1 << 20
        ) {
            self.sync = sync
            self.speedBytesPerSecond = speedBytesPerSecond
            self.targetReadsAsZero = targetReadsAsZero
            self.depth = depth
            self.chunkSize = chunkSize
        }
    }

    package let drive: LiveDrive
    var source: any BlockDevice { drive.device }
    package let target: any BackupTarget
    package let options: Options
    package let control: JobControl
    let buffers: BufferPool
    let clock: JobClock
    let requests: TargetRequests

    /// The unit of the copy in bytes: the target's cluster, but at least 64 KiB.
    package var clusterSize: UInt64 { max(64 << 10, target.clusterSize) }

    /// The largest read in bytes: the largest power of two that is not above a buffer nor the size of a chunk.
    var pieceSize: UInt64 {
        let most = min(UInt64(buffers.bufferSize), options.chunkSize)
        precondition(most >= 4096, "a buffer and a chunk hold at least a page")
        return 1 << UInt64(63 - most.leadingZeroBitCount)
    }

    /// Makes a job that has not begun. `options` set the speed and depth of `control`. `base` is what the drive's top layer
    /// lies on, for `top`.
    package init(
        drive: LiveDrive, base: (any BlockDevice)? = nil, target: any BackupTarget, options: Options,
        record: JobRecord, staging: Staging, buffers: BufferPool,
        control: JobControl = JobControl(), clock: JobClock = .system
    ) {
        self.drive = drive
        let source = drive.device
        self.target = target
        self.options = options
        self.buffers = buffers
        self.control = control
        self.clock = clock
        requests = TargetRequests(engine: source.engine)
        control.setSpeed(options.speedBytesPerSecond)
        control.setDepth(options.depth)
        control.begin(total: source.size)
    }

    /// Fixes the point in time of all these jobs, one for each of as many drives, at one instant, and returns when the last
    /// guest request that was in flight then has ended. From then on old content is saved; `release` ends that.
    ///
    /// Throws `.cancelled` when one of them was cancelled meanwhile, `.failed` when the engines could not meet within 200 ms:
    /// then nothing has begun for any of them.
    package static func fixPointInTime(of jobs: [BackupJob]) async throws(BackupFailure) {}

    /// Lets the guest go: nothing is saved for this job any more, the view ends, kept discards are passed on. Call it once
    /// after `fixPointInTime`, when the target is complete or given up; staging and record are the caller's to remove then.
    package func release() async {}

    /// The drive as it was at the point in time, for reading: between `fixPointInTime` and `release`. Fails every read with
    /// `.cancelled` afterwards, and when the point in time is broken.
    package var view: any BlockDevice { drive.device }

    /// What the operator is to know, once for each cause (staging is getting full, for instance); set before
    /// `fixPointInTime`.
    package func onWarning(_ body: @escaping @Sendable (IOFailure) -> Void) {}

    /// Copies until every cluster is in the target. Call it once, from anywhere: the work is done on the drive's
    /// engine. The target is neither completed nor abandoned.
    ///
    /// Throws the first failure after everything in flight has ended, or `.cancelled` as soon as the reads in flight
    /// have: requests to the target may then still be on their way, see `leftBehindEnded`.
    package func run() async throws(BackupFailure) {
        guard source.size <= Self.largestDrive else { throw .failed(tooLarge) }
        let loop = CopyLoop(self)
        let failure = await withTaskCancellationHandler {
            await source.engine.run { () async -> BackupFailure? in await loop.run() }
        } onCancel: {
            control.cancel()
        }
        control.ended()
        if let failure { throw failure }
    }

    /// What an image may claim to hold without the job's own tables becoming a danger: 4 PiB.
    package static let largestDrive: UInt64 = 1 << 52

    private var tooLarge: IOFailure {
        let message = """
            Couldn't back up \(source.name): its \(source.size) bytes are more than the \(Self.largestDrive) bytes \
            that a job can keep track of
            """
        return IOFailure(
            .source, .read, source.range, BlockError(.unsupported, message, range: source.range))
    }

    /// Returns when no request of this job is on its way to the target any more: at once unless `run` was cancelled.
    package func leftBehindEnded() async {
        let requests = requests
        await source.engine.run { await requests.allEnded() }
    }
}
