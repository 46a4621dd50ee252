internal import BlockIO
internal import Synchronization
internal import TestKit
internal import Testing

@testable internal import BackupJobs

/// Guests that write one piece behind the other.
@Suite struct SequentialWritesTests {
    private static let scale = SequentialWrites.Scale(
        least: 100, tolerance: 10, lead: 1000, farthest: 5000, longPiece: 50)

    private static func after(_ ranges: [Range<UInt64>]) -> SequentialWrites {
        var writes = SequentialWrites(scale)
        for range in ranges { writes.note(ByteRange(range)) }
        return writes
    }

    private static func pieces(_ range: Range<UInt64>, of length: UInt64) -> [Range<UInt64>] {
        stride(from: range.lowerBound, to: range.upperBound, by: Int(length)).map { $0..<$0 + length }
    }

    @Test("one is found out when it has gone on for long enough, and what it will come to is told")
    func found() {
        #expect(Self.after(Self.pieces(7000..<7100, of: 10)).ahead == nil)
        let writes = Self.after(Self.pieces(7000..<7110, of: 10))
        #expect(writes.ahead == ByteRange(8110..<8210) && !writes.isInLongPieces)
        let long = Self.after(Self.pieces(7000..<7200, of: 50))
        #expect(long.ahead == ByteRange(8200..<8350) && long.isInLongPieces)
        #expect(Self.after(Self.pieces(0..<20_000, of: 50)).ahead == ByteRange(21_000..<26_000))
    }

    @Test("neither long writes here and there are one, nor writes of the same place")
    func others() {
        #expect(Self.after([7000..<9000, 2000..<4000, 70_000..<90_000]).ahead == nil)
        #expect(Self.after(Array(repeating: 7000..<7050, count: 100)).ahead == nil)
        #expect(Self.after([0..<50, 200..<250, 400..<450, 0..<49, 60..<110]).ahead == nil)
    }

    @Test("the order of requests that were sent together does not matter")
    func order() {
        let writes = Self.after([5..<10, 0..<5, 15..<20, 10..<15, 20..<95, 95..<110])
        #expect(writes.ahead == ByteRange(1110..<1210))
    }

    @Test("others in between do not hide it, until it has ended")
    func between() {
        func random(_ number: Int) -> Range<UInt64> {
            let start = 100_000 + UInt64(number) * 1000
            return start..<start + 10
        }
        var ranges: [Range<UInt64>] = []
        for (index, piece) in Self.pieces(7000..<7400, of: 20).enumerated() {
            ranges += [random(index * 3), random(index * 3 + 1), random(index * 3 + 2), piece]
        }
        #expect(Self.after(ranges).ahead == ByteRange(8400..<8780))
        let rest = (0..<64).map { random(1000 + $0) }
        #expect(Self.after(ranges + rest).ahead == ByteRange(8400..<8780))
        #expect(Self.after(ranges + rest + [random(2000)]).ahead == nil)
        // Another one takes its place.
        #expect(Self.after(ranges + [0..<60, 60..<120, 120..<180]).ahead == ByteRange(1180..<1300))
        // Too many at once are none.
        var five: [Range<UInt64>] = []
        for step: UInt64 in 0..<20 {
            for run: UInt64 in 0..<5 {
                let start = 10_000 * run + 20 * step
                five.append(start..<start + 20)
            }
        }
        #expect(Self.after(five).ahead == nil)
    }

    // MARK: What the copy makes of it

    private static let cluster: UInt64 = 65536
    private static let clusters: UInt64 = 64

    /// In which order clusters are copied when a guest has overwritten these, one after the other, before the copy began.
    private static func order(
        _ overwritten: Range<UInt64>, sync: BackupJob.Options.Sync = .full, stagingLimit: UInt64? = nil
    ) -> [UInt64] {
        let engine = SimEngine(seed: 1)
        let disk = SimDisk(size: clusters * cluster - 512, engine: engine)
        for offset in stride(from: 0, to: clusters * cluster - 4096, by: 4096) {
            disk.setContents(at: offset, [UInt8](repeating: 7, count: 4096))
        }
        let drive = LiveDrive(disk)
        let target = SimTarget(size: disk.size, clusterSize: cluster, initially: 0, sim: nil)
        var options = BackupJob.Options(sync: sync, depth: 1, chunkSize: cluster)
        options.sequentialWrites = .init(
            least: 4 * cluster, tolerance: 4096, lead: 2 * cluster, farthest: 8 * cluster)
        let job = BackupJob(
            drive: drive, target: target, options: options,
            record: Scratch(size: disk.size, clusterSize: cluster, engine: engine).record,
            staging: Staging(on: SimDisk(size: disk.size, engine: engine), limit: stagingLimit),
            buffers: BufferPool(), clock: engine.clock)
        let failure = Mutex<(any Error)?>(nil)
        let isDone = engine.drive {
            do {
                try await BackupJob.fixPointInTime(of: [job])
                for number in overwritten {
                    let range = ByteRange(offset: number * cluster, length: cluster).clamped(to: disk.range)
                    try await drive.write(range, from: IOBuffer(count: Int(range.length)).slice)
                }
                if sync == .none { job.control.finish() }
                try await job.run()
            } catch {
                failure.withLock { $0 = error }
            }
            await job.release()
        }
        #expect(isDone, "it got stuck")
        #expect(failure.withLock { $0 } == nil)
        #expect(sync == .none || target.content.bytes.dropLast(4096).allSatisfy { $0 == 7 })
        return target.order.map { $0.offset / cluster }
    }

    @Test("what they will come to is copied first, then what they have overwritten, then the rest")
    func ahead() {
        #expect(
            Self.order(20..<30) == Array(32..<40) + Array(20..<30) + Array(0..<20) + [30, 31] + Array(40..<64)
        )
        // Up to the end of the drive, and not beyond.
        #expect(Self.order(50..<60) == [62, 63] + Array(50..<60) + Array(0..<50) + [60, 61])
        #expect(Self.order(54..<64) == Array(54..<64) + Array(0..<54))
        // Too few to tell.
        #expect(Self.order(20..<23) == Array(20..<23) + Array(0..<20) + Array(23..<64))
    }

    @Test("not where staging fills up, nor where only what they overwrite is copied")
    func limits() {
        #expect(
            Self.order(20..<30, stagingLimit: 40 * Self.cluster)
                == Array(32..<40) + Array(20..<30) + Array(0..<20) + [30, 31] + Array(40..<64))
        #expect(Self.order(20..<30, stagingLimit: 39 * Self.cluster).first == 20)
        #expect(Self.order(20..<30, sync: .none) == Array(20..<30))
    }
}
