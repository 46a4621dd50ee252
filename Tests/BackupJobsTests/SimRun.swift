internal import BlockIO
internal import Synchronization

@testable internal import BackupJobs

/// A job with everything around it, in virtual time.
final class SimRun: Sendable {
    let engine: SimEngine
    let drive: SimDrive
    let target: SimTarget
    let pool: BufferPool
    let job: BackupJob
    private let record: JobRecord
    var control: JobControl { job.control }

    init(
        _ stretches: [SimDrive.Stretch], sync: BackupJob.Options.Sync = .full, readsAsZero: Bool = false,
        speed: Int64 = 0, hanging: Int? = nil, clones: Bool = false, seed: UInt64 = 1
    ) {
        let engine = SimEngine(seed: seed)
        self.engine = engine
        drive = SimDrive(stretches, engine: engine)
        target = SimTarget(
            size: drive.size, clusterSize: 65536, initially: readsAsZero ? 0 : 0xee,
            sim: engine,
            faults: SimTarget.Faults(hanging: hanging), source: clones ? drive : nil)
        pool = BufferPool(capacity: 16 << 20)
        let scratch = Scratch(drive, target: target)
        record = scratch.record
        job = BackupJob(
            drive: LiveDrive(drive), target: target,
            options: BackupJob.Options(
                sync: sync, speedBytesPerSecond: speed, targetReadsAsZero: readsAsZero),
            record: scratch.record, staging: scratch.staging, buffers: pool, clock: engine.clock)
    }

    /// Whether old content of these bytes is saved.
    func isSaved(_ range: ByteRange) -> Bool {
        record.bits.saved.isSet(Int(range.offset / JobRecord.blockSize))
    }

    /// Runs the job, and `besides` at the same time; `isStuck` when one of them did not come to its end.
    func play(_ besides: @escaping @Sendable (SimRun) async -> Void = { _ in }) -> (
        failure: BackupFailure?, isStuck: Bool
    ) {
        let outcome = Mutex<BackupFailure?>(nil)
        let isDone = engine.drive { [self] in
            async let other: Void = besides(self)
            do throws(BackupFailure) {
                try await BackupJob.fixPointInTime(of: [job])
                try await job.run()
            } catch {
                outcome.withLock { $0 = error }
            }
            await job.release()
            await other
        }
        precondition(isDone, "the run got stuck")
        return (outcome.withLock { $0 }, !isDone)
    }
}

extension SimEngine {
    /// The virtual time as a job's clock.
    var clock: JobClock {
        JobClock(
            now: { self.now },
            sleep: { delay in
                guard await self.pass(delay, cancellable: true) else { throw CancellationError() }
            })
    }
}

extension SimDrive.Stretch {
    static func data(_ range: Range<UInt64>) -> Self {
        Self(range: ByteRange(range), content: .pattern, isKnownZero: false, isAllocated: true)
    }

    static func zeroData(_ range: Range<UInt64>) -> Self {
        Self(range: ByteRange(range), content: .zeroes, isKnownZero: false, isAllocated: true)
    }

    static func hole(_ range: Range<UInt64>) -> Self {
        Self(range: ByteRange(range), content: .zeroes, isKnownZero: true, isAllocated: true)
    }
}
