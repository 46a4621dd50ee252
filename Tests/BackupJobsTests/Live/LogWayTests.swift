internal import BlockIO
internal import Foundation
internal import Synchronization
internal import TestKit
internal import Testing

@testable internal import BackupJobs

/// Which way the log goes to the staging file.
@Suite struct LogWayTests {
    private static let writes = 200
    /// So much apart.
    private static let pause = Duration.milliseconds(5)

    /// A guest overwrites block after block while the copy goes on at so many bytes a write. Whether each segment went past the
    /// page cache.
    private static func ways(copied: UInt64) throws -> [Bool] {
        let engine = SimEngine(seed: 1)
        let disk = SimDisk(size: UInt64(writes) * 4096, engine: engine)
        for offset in stride(from: 0, to: disk.size, by: 4096) {
            disk.setContents(at: offset, [UInt8](repeating: 7, count: 4096))
        }
        let shape = StagingLog.Shape(blocksPerSegment: 2, buffers: 4, segments: 100)
        let directory = try TemporaryDirectory()
        let record = try JobRecord.create(
            at: directory.file("record"), driveSize: disk.size, clusterSize: 65536, log: shape, engine: engine
        )
        let staged = Noting(below: SimDisk(size: disk.size + shape.fileLength, engine: engine))
        let drive = LiveDrive(disk)
        let job = BackupJob(
            drive: drive, target: SimTarget(size: disk.size, clusterSize: 65536, initially: 0, sim: nil),
            options: BackupJob.Options(sync: .full), record: record, staging: Staging(on: staged),
            buffers: BufferPool(), clock: engine.clock)
        let outcome = Mutex<(any Error)?>(nil)
        let isDone = engine.drive {
            do {
                try await BackupJob.fixPointInTime(of: [job])
                for block in 0..<UInt64(writes) {
                    try await drive.write(
                        ByteRange(offset: block * 4096, length: 4096), from: IOBuffer(count: 4096).slice)
                    job.control.recovered(copied: block * copied)
                    await engine.pass(pause)
                }
            } catch {
                outcome.withLock { $0 = error }
            }
            await job.release()
        }
        #expect(isDone)
        if let error = outcome.withLock({ $0 }) { throw error }
        return staged.ways.withLock { $0 }
    }

    @Test("past the page cache while the copy hangs, once that can be told")
    func far() throws {
        let ways = try Self.ways(copied: 0)
        let first = try #require(ways.firstIndex(of: true), "\(ways)")
        // A quarter of a second is 50 writes, 25 segments.
        #expect((10..<30).contains(first) && ways[first...].allSatisfy { $0 }, "\(ways)")
    }

    @Test("to the page cache while the copy comes there soon")
    func near() throws {
        let ways = try Self.ways(copied: 1 << 20)
        #expect(ways.count > 50 && !ways.contains(true), "\(ways)")
    }
}

/// Notes for each write of more than a block, which here is one of the log, whether it is to go past the page cache.
private final class Noting: DiskAbove {
    let below: any BlockDevice
    let ways = Mutex<[Bool]>([])

    init(below: any BlockDevice) { self.below = below }

    var canWritePastCache: Bool { true }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        if range.length > 4096 { ways.withLock { $0.append(false) } }
        try await below.write(range, from: buffer)
    }

    func writePastCache(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        ways.withLock { $0.append(true) }
        try await below.write(range, from: buffer)
    }
}
