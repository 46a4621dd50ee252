internal import BlockIO
internal import Glibc
internal import Synchronization
internal import TestKit
internal import Testing

@testable internal import BackupJobs

/// A drive of which the page cache has all but one block.
private final class CachedDisk: DiskAbove {
    static let missing: UInt64 = 5 * 4096
    let below: any BlockDevice
    let reads = Locked<[ByteRange]>([])

    init(_ disk: any BlockDevice) { below = disk }

    func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool {
        reads.withLock { $0.append(range) }
        guard range.offset != Self.missing else { return false }
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: UInt8(range.offset / 4096 % 255 + 1))
        return true
    }

    func writeAtOnce(_: ByteRange, from _: IOSlice) -> Bool { true }
}

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

    @Test("what writes that come together overwrite is saved before the first of them")
    func together() {
        let engine = SimEngine(seed: 1, limit: .seconds(60))
        let disk = CachedDisk(SimDisk(size: 16 << 20 + 512, engine: engine))
        let drive = LiveDrive(disk)
        let target = SimTarget(size: disk.size, clusterSize: 65536, initially: 0xee, sim: nil)
        let scratch = Scratch(disk, target: target)
        let start = disk.size.roundedUp(toMultipleOf: 4096)
        let staged = SimDisk(size: start + scratch.record.log.shape.fileLength, engine: engine)
        let job = BackupJob(
            drive: drive, target: target, options: BackupJob.Options(sync: .full), record: scratch.record,
            staging: Staging(on: staged), buffers: BufferPool(), clock: engine.clock)
        let isDone = engine.drive {
            func saved() -> [Range<Int>] { job.record.bits.saved.runs(in: 0..<job.record.bits.saved.count) }
            do throws(BackupFailure) { try await BackupJob.fixPointInTime(of: [job]) } catch { return }
            func expect(_ ranges: (offset: UInt64, length: UInt64)...) {
                drive.expectWrites { ranges.map { ByteRange(offset: $0.offset, length: $0.length) } }
            }
            // Once each; not what the cache has not, nor more than a block, nor a piece of one at the end, nor what is none.
            expect(
                (0, 4096), (8192 + 512, 512), (CachedDisk.missing, 512), (100, 1), (12288, 8192),
                (7 * 4096, 0),
                (disk.size - 512, 512), (disk.size, 512), (.max - 512, 512), (9 * 4096, 4096))
            #expect(saved() == [0..<1, 2..<3, 9..<10])
            #expect(disk.reads.value.map(\.offset) == [0, 8192, CachedDisk.missing, 9 * 4096])
            #expect(job.staging.held(in: drive.range) == 3 * 4096)
            #expect(job.staging.usage.used > 0)
            // The writes find it saved, and the copy hears of what is.
            let buffer = IOBuffer(count: 4096)
            #expect(drive.writeAtOnce(ByteRange(offset: 9 * 4096, length: 4096), from: buffer.slice))
            #expect(disk.reads.value.count == 4)
            job.control.signal.raise()
            await job.control.signal.raised()
            expect((0, 512), (10 * 4096, 512))
            await job.control.signal.raised()
            #expect(disk.reads.value.count == 5)
            // When it has become much it is sent on.
            #expect(!staged.calls.contains { $0.operation == .write })
            for block in stride(from: UInt64(16), to: 4096, by: 8) {
                drive.expectWrites { (0..<8).map { ByteRange(offset: (block + $0) * 4096, length: 4096) } }
            }
            #expect(saved().last == 16..<4096)
            await engine.pass(.seconds(1))
            #expect(staged.calls.contains { $0.operation == .write && $0.range.offset >= start })
            drive.detach(job.point)
            expect((14 * 4096, 512), (15 * 4096, 512))
            #expect(saved().map(\.count).reduce(0, +) == 4 + 4080)
            await job.release()
        }
        #expect(isDone)
    }
}
