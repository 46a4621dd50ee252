internal import BlockIO
internal import Glibc
internal import Synchronization
internal import TestKit
internal import Testing

@testable internal import BackupJobs

/// A target on a simulated disk, which can be told to fail.
private final class DiskTarget: BackupTarget {
    let name = "target"
    let clusterSize: UInt64 = 65536
    let disk: SimDisk

    init(_ disk: SimDisk) { self.disk = disk }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await disk.write(range, from: buffer)
    }

    func writeZeroes(_ range: ByteRange) async throws(BlockError) {
        try await disk.writeZeroes(range, mayUnmap: true)
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try await disk.read(range, into: buffer)
    }

    func prepare() async throws(BlockError) {}
    func publish() async throws(BlockError) {}
    func abandon(keep _: Bool) async {}
}

/// A job between two disks that can fail, and what it says.
private final class Bench: Sendable {
    static let cluster: UInt64 = 65536

    let engine = SimEngine(seed: 1, limit: .seconds(3600))
    let source: SimDisk
    let target: SimDisk
    let drive: LiveDrive
    let job: BackupJob
    let told = Mutex<[(failure: IOFailure, action: ErrorPolicy.Action)]>([])

    init(
        _ clusters: UInt64 = 16, onSourceError: ErrorPolicy = .report, onTargetError: ErrorPolicy = .report,
        sync: BackupJob.Options.Sync = .full, stagingLimit: UInt64? = nil
    ) {
        let size = clusters * Self.cluster
        source = SimDisk(size: size, engine: engine, name: "drive")
        target = SimDisk(size: size, engine: engine, name: "target")
        for block in 0..<size / 4096 {
            source.setContents(at: block * 4096, [UInt8](repeating: UInt8(1 + block % 250), count: 4096))
        }
        drive = LiveDrive(source)
        var options = BackupJob.Options(sync: sync, depth: 1, chunkSize: 4 * Self.cluster)
        options.onSourceError = onSourceError
        options.onTargetError = onTargetError
        options.stagingFull = .stall
        let record = Scratch(size: size, clusterSize: Self.cluster, engine: engine).record
        job = BackupJob(
            drive: drive, target: DiskTarget(target), options: options, record: record,
            staging: Staging(on: SimDisk(size: size, engine: engine), limit: stagingLimit),
            buffers: BufferPool(), clock: engine.clock)
    }

    func bytes(_ cluster: UInt64, count: UInt64 = 1) -> ByteRange {
        ByteRange(offset: cluster * Self.cluster, length: count * Self.cluster)
    }

    /// Runs the job to its end, and `operate` beside it.
    func run(_ operate: @escaping @Sendable (Bench) async -> Void = { _ in }) -> BackupFailure? {
        let outcome = Mutex<BackupFailure?>(nil)
        let isDone = engine.drive { [self] in
            await job.onError { failure, action in self.told.withLock { $0.append((failure, action)) } }
            do throws(BackupFailure) {
                try await BackupJob.fixPointInTime(of: [job])
                async let beside: Void = operate(self)
                try await job.run()
                await beside
            } catch {
                outcome.withLock { $0 = error }
            }
            await job.letGo()
        }
        #expect(isDone, "it got stuck")
        return outcome.withLock { $0 }
    }

    /// Waits until an error has halted the copy.
    func isHalted() async -> Bool {
        while !job.control.isHalted { await engine.pass(.milliseconds(1)) }
        return await job.control.quiescent()
    }

    var missing: [ByteRange] {
        let found = Mutex(BackupJob.Missing())
        _ = engine.drive { [job] in
            let missing = await job.missing(limit: 256)
            found.withLock { $0 = missing }
        }
        let missing = found.withLock { $0 }
        #expect(missing.length == missing.ranges.reduce(0) { $0 + $1.length })
        return missing.ranges
    }

    /// Whether the target holds what the source does, but for `ranges`.
    func isSame(but ranges: [ByteRange] = []) -> Bool {
        stride(from: 0, to: source.size, by: 4096).allSatisfy { offset in
            let block = ByteRange(offset: offset, length: 4096)
            return ranges.contains { $0.overlaps(block) }
                || source.contents(of: block) == target.contents(of: block)
        }
    }
}

private let damage = BlockError("Couldn't do it", errno: EIO)

/// What a job does about errors, in virtual time.
@Suite("Error policies")
struct PolicyTests {
    @Test("what is done about an error follows from the policy and the error")
    func table() {
        let noSpace = [ENOSPC, EDQUOT].map { BlockError("x", errno: $0) }
        let others = [EIO, EFBIG, EPERM].map { BlockError("x", errno: $0) }
        for error in noSpace + others {
            #expect(ErrorPolicy.report.action(on: error) == .report)
            #expect(ErrorPolicy.ignore.action(on: error) == .ignore)
            #expect(ErrorPolicy.stop.action(on: error) == .stop)
            for policy in [ErrorPolicy.enospc, .auto] {
                #expect(policy.action(on: error) == (noSpace.contains(error) ? .stop : .report))
            }
        }
        for policy in ErrorPolicy.allCases {
            for code in [BlockError.Code.dataLost, .gone, .cancelled] {
                #expect(policy.action(on: BlockError(code, "x", errno: ENOSPC)) == .report)
            }
        }
    }

    @Test(
        "an error under stop halts the copy, again after each resume until it is gone; then exactly what failed is copied",
        arguments: [IOFailure.Side.source, .target])
    func stop(side: IOFailure.Side) {
        let bench = Bench(onSourceError: .stop, onTargetError: .stop)
        let (disk, other) = side == .source ? (bench.source, bench.target) : (bench.target, bench.source)
        disk.fail(side == .source ? .read : .write, touching: bench.bytes(6), with: damage)
        let failure = bench.run { bench in
            for round in 1...3 {
                #expect(await bench.isHalted())
                #expect(bench.told.withLock { $0.count } == round && bench.job.control.isHalted)
                let progress = bench.job.control.progress
                await bench.engine.pass(.seconds(60))
                #expect(bench.job.control.progress == progress, "nothing goes on by itself")
                if round == 3 {
                    disk.heal()
                    disk.forgetCalls()
                    other.forgetCalls()
                }
                bench.job.control.resume()
            }
        }
        #expect(failure == nil && bench.isSame() && bench.missing == [])
        let told = bench.told.withLock { $0 }
        #expect(
            told.allSatisfy { $0.action == .stop && $0.failure.side == side && $0.failure.error.errno == EIO }
        )
        let place = told.first?.failure.range
        if side == .source { #expect(place == ByteRange(offset: 6 << 16, length: 4096)) }
        if side == .target { #expect(place == bench.bytes(4, count: 4)) }
        // All else had been copied before.
        #expect(
            bench.source.calls.filter { $0.operation == .read }.map(\.range) == [bench.bytes(4, count: 4)])
        #expect(
            bench.target.calls.filter { $0.operation == .write }.map(\.range) == [bench.bytes(4, count: 4)])
    }

    @Test(
        "no space pauses under enospc and auto, and anything else fails",
        arguments: [ErrorPolicy.enospc, .auto])
    func noSpace(policy: ErrorPolicy) {
        for errno in [ENOSPC, EDQUOT, EIO, EFBIG] {
            let bench = Bench(onTargetError: policy)
            bench.target.fail(.write, times: 1, with: BlockError("Couldn't write", errno: errno))
            let pauses = errno == ENOSPC || errno == EDQUOT
            let failure = bench.run { bench in
                guard pauses else { return }
                #expect(await bench.isHalted())
                bench.job.control.resume()
            }
            #expect(failure?.ioFailure?.error.errno == (pauses ? nil : errno))
            if pauses { #expect(bench.isSame()) }
        }
    }

    @Test("data that the target has lost fails the job under every policy", arguments: ErrorPolicy.allCases)
    func dataLost(policy: ErrorPolicy) {
        let bench = Bench(onTargetError: policy)
        bench.target.fail(
            .write, touching: bench.bytes(3), times: 1, with: BlockError(.dataLost, "x", errno: ENOSPC))
        #expect(bench.run()?.ioFailure?.error.code == .dataLost)
        #expect(bench.told.withLock { $0.isEmpty })
    }

    @Test("ignore leaves out the blocks that cannot be read, and no other, after a few tries and little time")
    func ignoredReads() {
        let bench = Bench(onSourceError: .ignore)
        let bad = [
            ByteRange(offset: 5 * 4096, length: 512), ByteRange(offset: 100 * 4096, length: 3 * 4096),
            ByteRange(offset: 255 * 4096, length: 4096),
        ]
        for range in bad { bench.source.fail(.read, touching: range, with: damage) }
        #expect(bench.run() == nil)
        let blocks = bad.map { $0.expanded(toMultipleOf: 4096) }
        #expect(bench.missing == blocks && bench.isSame(but: blocks))
        #expect(blocks.allSatisfy { bench.target.contents(of: $0).allSatisfy { $0 == 0 } })
        let told = bench.told.withLock { $0 }
        #expect(told.map(\.failure.range) == blocks && told.allSatisfy { $0.action == .ignore })
        for block in blocks {
            let tries = bench.source.calls.count {
                $0.operation == .read && $0.range.overlaps(block.prefix(4096))
            }
            #expect(tries == 2 + ErrorPolicy.pauses.count)
        }
        // A quarter of a second for each piece that has some.
        #expect(bench.engine.now < .seconds(2))
    }

    @Test("ignore leaves out the clusters that cannot be written, and no other")
    func ignoredWrites() {
        let bench = Bench(onTargetError: .ignore)
        bench.target.fail(.write, touching: ByteRange(offset: 6 << 16 + 9000, length: 1), with: damage)
        bench.target.fail(.write, touching: bench.bytes(9, count: 2), with: BlockError("Full", errno: ENOSPC))
        #expect(bench.run() == nil)
        let clusters = [bench.bytes(6), bench.bytes(9, count: 2)]
        #expect(bench.missing == clusters && bench.isSame(but: clusters))
        let told = bench.told.withLock { $0 }
        #expect(told.map(\.failure.range) == clusters && told.map(\.failure.error.errno) == [EIO, ENOSPC])
        let writes = bench.target.calls.count { $0.operation == .write && $0.range.overlaps(clusters[0]) }
        #expect(writes == 2 + ErrorPolicy.pauses.count && bench.engine.now < .seconds(2))
        #expect(bench.job.control.progress.current == bench.source.size)
    }

    @Test("what fails a few times only is not missing", arguments: [IOFailure.Side.source, .target])
    func transient(side: IOFailure.Side) {
        let bench = Bench(onSourceError: .ignore, onTargetError: .ignore)
        let (disk, operation) =
            side == .source ? (bench.source, SimDisk.Operation.read) : (bench.target, .write)
        disk.fail(operation, touching: bench.bytes(6).prefix(4096), times: 4, with: damage)
        #expect(bench.run() == nil && bench.isSame())
        #expect(bench.missing == [] && bench.told.withLock { $0.isEmpty })
    }

    @Test("what a guest overwrites and cannot be read is missing under ignore, and the guest goes on")
    func ignoredSave() {
        let bench = Bench(onSourceError: .ignore)
        let bad = ByteRange(offset: 200 * 4096, length: 4096)
        bench.source.fail(.read, touching: bad, with: damage)
        bench.job.control.pause()
        let failure = bench.run { bench in
            let buffer = IOBuffer(count: 3 * 4096)
            do throws(BlockError) {
                try await bench.drive.write(
                    ByteRange(offset: 199 * 4096, length: 3 * 4096), from: buffer.slice)
            } catch { Issue.record("the guest's write fails: \(error)") }
            bench.source.heal()
            bench.job.control.resume()
        }
        #expect(failure == nil && bench.missing == [bad])
        for (block, byte) in [(199, UInt8(200)), (200, 0), (201, 202)] {
            let range = ByteRange(offset: UInt64(block) * 4096, length: 4096)
            #expect(bench.target.contents(of: range) == [UInt8](repeating: byte, count: 4096))
        }
    }

    @Test("the view does not show what is missing in the target")
    func view() {
        let bench = Bench(onTargetError: .ignore)
        bench.target.fail(.write, touching: bench.bytes(6), with: damage)
        let isRefused = Mutex<[Bool]>([])
        let isDone = bench.engine.drive {
            do throws(BackupFailure) {
                try await BackupJob.fixPointInTime(of: [bench.job])
                try await bench.job.run()
            } catch {
                Issue.record("\(error)")
                return
            }
            for cluster in [UInt64(5), 6] {
                let buffer = IOBuffer(count: 4096)
                var failed = false
                do throws(BlockError) {
                    try await bench.job.view.read(bench.bytes(cluster).prefix(4096), into: buffer.slice)
                } catch { failed = true }
                isRefused.withLock { $0.append(failed) }
            }
            await bench.job.release()
        }
        #expect(isDone && isRefused.withLock { $0 } == [false, true])
    }

    @Test("while an error has halted the copy guests go on, and what they overwrite is saved")
    func savingGoesOn() {
        let bench = Bench(onTargetError: .stop)
        bench.target.fail(.write, touching: bench.bytes(0), with: damage)
        let failure = bench.run { bench in
            #expect(await bench.isHalted())
            let before = bench.source.contents(of: bench.bytes(0, count: 2))
            let buffer = IOBuffer(count: 2 << 16)
            do throws(BlockError) {
                try await bench.drive.write(bench.bytes(0, count: 2), from: buffer.slice)
            } catch { Issue.record("the guest's write fails: \(error)") }
            bench.target.heal()
            bench.job.control.resume()
            while bench.target.contents(of: bench.bytes(0, count: 2)) != before {
                await bench.engine.pass(.milliseconds(10))
            }
        }
        #expect(failure == nil && bench.isSame(but: [bench.bytes(0, count: 2)]))
    }

    @Test("a guest that waits for space does not wait for a job that an error has halted: the job fails")
    func stall() {
        let bench = Bench(onTargetError: .stop, stagingLimit: 65536)
        bench.target.fail(.write, touching: bench.bytes(0), with: damage)
        let failure = bench.run { bench in
            #expect(await bench.isHalted())
            let buffer = IOBuffer(count: 3 << 16)
            do throws(BlockError) {
                try await bench.drive.write(bench.bytes(0, count: 3), from: buffer.slice)
            } catch { Issue.record("the guest's write fails: \(error)") }
        }
        #expect(failure?.ioFailure?.side == .staging && failure?.ioFailure?.error.code == .noSpace)
    }

    @Test("a job of sync none copies what had failed once it is resumed; while it ends an error fails it")
    func none() {
        for isEnding in [false, true] {
            let bench = Bench(onTargetError: .stop, sync: .none)
            bench.target.fail(.write, touching: bench.bytes(2), with: damage)
            let failure = bench.run { bench in
                let buffer = IOBuffer(count: 4096)
                let before = bench.source.contents(of: bench.bytes(2))
                if isEnding { bench.job.control.pause() }
                do throws(BlockError) {
                    try await bench.drive.write(bench.bytes(2).prefix(4096), from: buffer.slice)
                } catch { Issue.record("the guest's write fails: \(error)") }
                guard !isEnding else { return bench.job.control.finish() }
                #expect(await bench.isHalted())
                bench.target.heal()
                bench.job.control.resume()
                while bench.target.contents(of: bench.bytes(2)) != before {
                    await bench.engine.pass(.milliseconds(10))
                }
                bench.job.control.finish()
            }
            #expect((failure?.ioFailure?.side == .target) == isEnding)
            #expect(bench.told.withLock { $0.count } == (isEnding ? 0 : 1))
        }
    }

    @Test("a job that an error has halted can be cancelled")
    func cancelled() {
        let bench = Bench(onSourceError: .stop)
        bench.source.fail(.read, with: damage)
        let failure = bench.run { bench in
            #expect(await bench.isHalted())
            bench.job.control.cancel()
        }
        #expect(failure == .cancelled)
    }
}
