internal import BlockIO
internal import Synchronization
internal import TestKit
internal import Testing

@testable internal import BackupJobs

/// When staging gives back what it holds of clusters that are done.
@Suite struct GivingBackTests {
    private static let cluster: UInt64 = 65536

    /// A job between disks that answer at once, and its staging.
    private final class Bench: Sendable {
        let engine = SimEngine(seed: 1)
        let drive: LiveDrive
        let staged: SimDisk
        let job: BackupJob

        init(
            clusters: UInt64, sync: BackupJob.Options.Sync, together: UInt64, limit: UInt64? = nil,
            staging: ((SimDisk) -> any BlockDevice)? = nil, clones: Bool = false
        ) {
            let disk = SimDisk(size: clusters * cluster, engine: engine)
            for offset in stride(from: 0, to: disk.size, by: 4096) {
                disk.setContents(at: offset, [UInt8](repeating: 7, count: 4096))
            }
            drive = LiveDrive(ReadAtOnce(below: disk))
            let staged = SimDisk(size: disk.size, engine: engine)
            self.staged = staged
            let target: any BackupTarget =
                clones
                ? CloneTarget() : SimTarget(size: disk.size, clusterSize: cluster, initially: 0, sim: nil)
            var options = BackupJob.Options(sync: sync, depth: 1, chunkSize: cluster)
            options.givenBackTogether = together * cluster
            job = BackupJob(
                drive: drive, target: target, options: options,
                record: Scratch(size: disk.size, clusterSize: cluster, engine: engine).record,
                staging: Staging(on: staging?(staged) ?? staged, limit: limit), buffers: BufferPool(),
                clock: engine.clock)
        }

        var givenBack: [ByteRange] {
            staged.calls.filter { $0.operation == .discard }.map(\.range).sorted { $0.offset < $1.offset }
        }

        func overwrite(_ range: ByteRange) async throws(BlockError) {
            try await drive.write(range, from: IOBuffer(count: Int(range.length)).slice)
        }

        func run(_ body: @escaping @Sendable (Bench) async throws -> Void) -> (any Error)? {
            let outcome = Mutex<(any Error)?>(nil)
            let isDone = engine.drive { [self] in
                do {
                    try await BackupJob.fixPointInTime(of: [job])
                    try await body(self)
                } catch {
                    outcome.withLock { $0 = error }
                }
                await job.release()
            }
            #expect(isDone, "it got stuck")
            return outcome.withLock { $0 }
        }
    }

    @Test("it gives back a stretch of the drive at once, when all of it is done")
    func stretches() {
        let bench = Bench(clusters: 18, sync: .full, together: 4)
        let failure = bench.run { bench in
            // Nothing of the third stretch.
            for cluster: UInt64 in 0..<18 where !(8..<12).contains(cluster) {
                try await bench.overwrite(ByteRange(offset: cluster * Self.cluster + 4096, length: 4096))
            }
            try await bench.job.run()
        }
        #expect(failure == nil)
        #expect(
            bench.givenBack
                == [0..<4, 4..<8, 12..<16, 16..<18].map { (clusters: Range<UInt64>) in
                    ByteRange(clusters.lowerBound * Self.cluster..<clusters.upperBound * Self.cluster)
                })
        #expect(bench.job.staging.usage.used == 0)
    }

    @Test("when it is short of space it gives back what waits before a guest's write waits or the job fails")
    func need() {
        let bench = Bench(clusters: 16, sync: .none, together: 16, limit: 128 * 4096)
        let failure = bench.run { bench in
            async let run: Void = bench.job.run()
            try await bench.overwrite(ByteRange(offset: 0, length: 8192))
            while !bench.job.record.bits.done.isSet(0) { await bench.engine.pass(.milliseconds(1)) }
            #expect(bench.givenBack.isEmpty && bench.job.staging.usage.used == 8192)
            bench.job.control.pause()
            try await bench.overwrite(ByteRange(offset: 2 * Self.cluster, length: 128 * 4096))
            #expect(bench.givenBack == [ByteRange(offset: 0, length: Self.cluster)])
            bench.job.control.resume()
            bench.job.control.finish()
            try await run
        }
        #expect(failure == nil)
    }

    @Test("also for the next agent's sake: a job that is suspended gives back what a guest needs")
    func suspended() {
        let bench = Bench(clusters: 16, sync: .none, together: 16, limit: 128 * 4096)
        let failure = bench.run { bench in
            async let run: Void = bench.job.run()
            try await bench.overwrite(ByteRange(offset: 0, length: 8192))
            while !bench.job.record.bits.done.isSet(0) { await bench.engine.pass(.milliseconds(1)) }
            bench.job.control.suspend()
            try await bench.overwrite(ByteRange(offset: 2 * Self.cluster, length: 128 * 4096))
            #expect(bench.givenBack == [ByteRange(offset: 0, length: Self.cluster)])
            #expect(!bench.job.record.isBroken)
            try await run
        }
        #expect((failure as? BackupFailure).map { if case .suspended = $0 { true } else { false } } == true)
    }

    @Test("it does not let much wait")
    func bound() {
        let bench = Bench(clusters: 8, sync: .none, together: 8, limit: 128 * 4096)
        let failure = bench.run { bench in
            async let run: Void = bench.job.run()
            for cluster: UInt64 in [0, 1, 4] {
                #expect(bench.givenBack.isEmpty)
                try await bench.overwrite(ByteRange(offset: cluster * Self.cluster, length: 16384))
                while !bench.job.record.bits.done.isSet(Int(cluster)) {
                    await bench.engine.pass(.milliseconds(1))
                }
            }
            await bench.engine.pass(.milliseconds(1))
            let gone = [
                ByteRange(offset: 0, length: 2 * Self.cluster),
                ByteRange(offset: 4 * Self.cluster, length: Self.cluster),
            ]
            #expect(bench.givenBack == gone)
            bench.job.control.finish()
            try await run
        }
        #expect(failure == nil)
    }

    @Test("a disk that does not give back is waited for no longer than for a save; then the policy decides")
    func hangingDisk() {
        let bench = Bench(clusters: 16, sync: .none, together: 16, limit: 128 * 4096)
        let failure = bench.run { bench in
            async let run: Void = bench.job.run()
            bench.staged.hold { $0.operation == .discard }
            // Room for all but one block once the first cluster is given back, and none is given back twice.
            try await bench.overwrite(ByteRange(offset: 0, length: 4096))
            while !bench.job.record.bits.done.isSet(0) { await bench.engine.pass(.milliseconds(1)) }
            bench.job.control.pause()
            try await bench.overwrite(ByteRange(offset: 2 * Self.cluster, length: 129 * 4096))
            bench.staged.release()
            try await run
        }
        #expect((failure as? BackupFailure)?.ioFailure?.error.code == .noSpace)
    }

    @Test("a stretch is given back, too, when what was left of it was nothing to copy")
    func passedOver() {
        let bench = Bench(clusters: 4, sync: .top, together: 4)
        let failure = bench.run { bench in
            let point = bench.job.point
            await bench.engine.run {
                point.noteNeed(0..<3, isNeeded: true)
            }
            try await bench.overwrite(ByteRange(offset: 0, length: 4096))
            try await bench.engine.run {
                try point.record.bits.done.reserve(0..<3)
                point.record.bits.done.set(0..<3)
                point.retire(0..<3)
            }
            #expect(bench.givenBack.isEmpty)
            await bench.engine.run { point.noteNeed(3..<4, isNeeded: false) }
            await bench.engine.pass(.milliseconds(1))
            #expect(bench.givenBack == [ByteRange(offset: 0, length: 3 * Self.cluster)])
        }
        #expect(failure == nil)
    }

    @Test(
        "what a save in one step has left behind is given back, though a clone has it that nobody needs it any more"
    )
    func saveInVain() {
        let bench = Bench(clusters: 4, sync: .full, together: 4, staging: Torn.init, clones: true)
        let failure = bench.run { bench in
            await bench.engine.run {
                #expect(!bench.job.point.saveAtOnce(ByteRange(offset: 4096, length: 4096)))
            }
            #expect(bench.job.staging.usage.used == 4096)
            try await bench.job.run()
            #expect(bench.job.record.isCloned)
        }
        #expect(failure == nil)
        #expect(bench.givenBack == [ByteRange(offset: 0, length: 4 * Self.cluster)])
        #expect(bench.job.staging.usage.used == 0)
    }
}

/// A drive that has all in memory.
private final class ReadAtOnce: DiskAbove {
    let below: any BlockDevice

    init(below: any BlockDevice) { self.below = below }

    func readAtOnce(_: ByteRange, into buffer: IOSlice) -> Bool {
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
        return true
    }
}

/// Writes less than it was to.
private final class Torn: DiskAbove {
    let below: any BlockDevice

    init(_ disk: SimDisk) { below = disk }

    func writeAtOnce(_: ByteRange, from _: IOSlice) -> Bool { false }
}

/// A target that shares the drive's blocks.
private final class CloneTarget: BackupTarget {
    let name = "clone"
    let clusterSize: UInt64 = 65536
    let clones = true

    func write(_: ByteRange, from _: IOSlice) async throws(BlockError) {}
    func writeZeroes(_: ByteRange) async throws(BlockError) {}
    func read(_: ByteRange, into _: IOSlice) async throws(BlockError) {}
    func clone(_: ByteRange) async throws(BlockError) {}
    func prepare() async throws(BlockError) {}
    func publish() async throws(BlockError) {}
    func abandon(keep _: Bool) async {}
}
