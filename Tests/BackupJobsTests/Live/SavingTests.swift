internal import BackupJobs
internal import BlockIO
internal import Glibc
internal import Synchronization
internal import TestKit
internal import Testing

/// Single properties of saving, on devices that answer at once.
@Suite struct SavingTests {
    @Test(
        "old content that cannot be read at once fails the guest's write, or the job, as was asked",
        arguments: [BackupJob.Options.SaveFailure.breakGuestWrite, .breakSnapshot])
    func failure(policy: BackupJob.Options.SaveFailure) {
        let engine = SimEngine(seed: 1)
        let disk = SimDisk(size: 1 << 20, engine: engine)
        disk.fail(
            .read, touching: ByteRange(offset: 65536, length: 4096),
            with: BlockError("Couldn't read", errno: EIO))
        let drive = LiveDrive(disk)
        let target = SimTarget(size: disk.size, clusterSize: 4096, initially: 0xee, sim: nil)
        let scratch = Scratch(disk, target: target)
        var options = BackupJob.Options(sync: .none)
        options.saveFailure = policy
        let job = BackupJob(
            drive: drive, target: target, options: options, record: scratch.record, staging: scratch.staging,
            buffers: BufferPool(), clock: engine.clock)
        let found = Mutex<(guest: Int32?, job: BackupFailure?)>((nil, nil))
        let isDone = engine.drive {
            do throws(BackupFailure) { try await BackupJob.fixPointInTime(of: [job]) } catch { return }
            let buffer = IOBuffer(count: 16384)
            do throws(BlockError) {
                try await drive.write(ByteRange(offset: 57344, length: 16384), from: buffer.slice)
                found.withLock { $0.guest = 0 }
            } catch {
                found.withLock { $0.guest = error.errno }
            }
            job.control.finish()
            do throws(BackupFailure) { try await job.run() } catch { found.withLock { $0.job = error } }
            await job.release()
        }
        #expect(isDone)
        let (guest, failure) = found.withLock { $0 }
        switch policy {
        case .breakGuestWrite: #expect(guest == EIO && failure == nil)
        case .breakSnapshot: #expect(guest == 0 && failure?.ioFailure?.side == .staging)
        }
    }
}
