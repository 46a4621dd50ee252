internal import BlockIO
internal import Synchronization
internal import TestKit
internal import Testing

@testable internal import BackupJobs

/// The tree of digests, held against a straightforward computation.
@Suite struct ContentDigestTests {
    /// What the content of some drive is: bytes, and which clusters were copied, which blocks are missing.
    private struct Model {
        var bytes: [UInt8]
        var copied: [Range<Int>]
        var missing: [Range<Int>]
        let clusterSize: UInt64

        /// The digests as docs/manifest.md tells them, without any of the shortcuts.
        func digests(_ algorithm: DigestAlgorithm) throws -> ContentDigests {
            var result = ContentDigests(algorithm: algorithm, driveSize: UInt64(bytes.count))
            let blockSize = Int(ContentDigests.blockSize)
            for extent in 0..<result.extentCount {
                let blocks = result.blocks(of: extent)
                var (joined, covered, isZero) = ([UInt8](), [Int](), true)
                for block in blocks {
                    let range = block * blockSize..<min((block + 1) * blockSize, bytes.count)
                    let cluster = range.lowerBound / Int(clusterSize)
                    let isMissing = (range.lowerBound / 4096..<(range.upperBound + 4095) / 4096).contains {
                        small in
                        missing.contains { $0.contains(small) }
                    }
                    guard copied.contains(where: { $0.contains(cluster) }), !isMissing else { continue }
                    covered.append(block - blocks.lowerBound)
                    isZero = isZero && bytes[range].allSatisfy { $0 == 0 }
                    joined += try bytes[range].withUnsafeBytes { try algorithm.digest($0) }
                }
                if covered.isEmpty { continue }
                if covered.count == blocks.count, isZero {
                    if case .zeroes(let run) = result.entries.last, run.upperBound == extent {
                        result.entries[result.entries.count - 1] = .zeroes(run.lowerBound..<extent + 1)
                    } else {
                        result.entries.append(.zeroes(extent..<extent + 1))
                    }
                    continue
                }
                var runs: [Range<Int>] = []
                for block in covered {
                    if let last = runs.last, last.upperBound == block {
                        runs[runs.count - 1] = last.lowerBound..<block + 1
                    } else {
                        runs.append(block..<block + 1)
                    }
                }
                result.entries.append(
                    .extent(
                        .init(
                            number: extent, digest: try joined.withUnsafeBytes { try algorithm.digest($0) },
                            covered: covered.count == blocks.count ? nil : runs)))
            }
            return result
        }
    }

    private struct Files {
        let sums: BlockSums
        let record: JobRecord
        let model: Model
    }

    private func make(
        _ random: inout Chance, _ algorithm: DigestAlgorithm, _ scratch: TemporaryDirectory,
        _ engine: any IOEngine
    ) async throws -> Files {
        let clusterSize: UInt64 = random.oneIn(3) ? 2 << 20 : 64 << 10
        let size = Int(random.below(12 << 20)) + 1
        var bytes = [UInt8](repeating: 0, count: size)
        var next = 0
        while next < size {
            let end = min(size, next + Int(random.below(3 << 20)) + 1)
            if random.oneIn(2) {
                let value = UInt8(random.below(255)) + 1
                for index in next..<end { bytes[index] = value &+ UInt8(truncatingIfNeeded: index >> 12) }
            }
            next = end
        }
        let clusters = (size + Int(clusterSize) - 1) / Int(clusterSize)
        var copied: [Range<Int>] = [0..<clusters]
        if random.oneIn(2) { copied = (0..<clusters).filter { _ in !random.oneIn(3) }.map { $0..<$0 + 1 } }
        var missing: [Range<Int>] = []
        if random.oneIn(3) {
            let first = Int(random.below(UInt64((size + 4095) / 4096)))
            missing = [first..<first + 1]
        }
        let model = Model(bytes: bytes, copied: copied, missing: missing, clusterSize: clusterSize)
        let sums = try await BlockSums.create(
            at: scratch.file("sums"), driveSize: UInt64(size), algorithm: algorithm, on: engine)
        let path = scratch.file("record")
        let record = try JobRecord.create(
            at: path, driveSize: UInt64(size), clusterSize: clusterSize, engine: engine)
        let buffer = IOBuffer(count: size)
        buffer.bytes.copyBytes(from: bytes)
        try await engine.run { [bytes, copied, missing] in
            for run in copied {
                for cluster in run {
                    let start = cluster * Int(clusterSize)
                    let end = min(size, start + Int(clusterSize))
                    // What is known to be zero is not noted.
                    if bytes[start..<end].allSatisfy({ $0 == 0 }) && (cluster % 2 == 0) { continue }
                    var digests = sums.digests(of: ByteRange(UInt64(start)..<UInt64(end)))
                    if cluster % 5 == 0 {
                        digests.makeQuickly(upTo: end - start, of: buffer[size - (end - start)..<size])
                        digests.forget()
                    }
                    // All, some or none of them are made while it is read.
                    let early = cluster % 3 == 0 ? end - start : (end - start) / 2 / 65536 * 65536
                    if cluster % 3 != 1 { digests.makeQuickly(upTo: early, of: buffer[start..<end]) }
                    try await sums.note(digests, of: buffer[start..<end])
                }
                try record.bits.done.reserve(run)
                record.bits.done.set(run)
            }
            for run in missing {
                try record.bits.missing.reserve(run)
                record.bits.missing.set(run)
            }
        }
        return Files(sums: sums, record: record, model: model)
    }

    @Test(
        "extents have the digests that the format says, whatever was copied",
        arguments: DigestAlgorithm.allCases)
    func tree(algorithm: DigestAlgorithm) async throws {
        let seed = testSeed()
        var random = Chance(seed: seed)
        let engine = ThreadsEngine(name: "digests")
        for round in 0..<testRounds(12) {
            let scratch = try TemporaryDirectory()
            let files = try await make(&random, algorithm, scratch, engine)
            let computed = try await engine.run { () async throws(BlockError) in
                var digester = try ExtentDigester(files.sums, files.record)
                return try await digester.compute()
            }
            let expected = try files.model.digests(algorithm)
            #expect(computed == expected, "seed \(seed), round \(round)")
            let damage = try await engine.run { () async throws(BlockError) in
                var digester = try ExtentDigester(files.sums, files.record)
                return try await digester.compare(with: expected)
            }
            #expect(damage.isNone, "seed \(seed), round \(round)")
        }
        await engine.shutDown()
    }

    @Test("one byte that is another is damage of its extent, and of no other")
    func damage() async throws {
        let seed = testSeed()
        var random = Chance(seed: seed)
        let engine = ThreadsEngine(name: "digests")
        for round in 0..<testRounds(12) {
            let scratch = try TemporaryDirectory()
            let files = try await make(&random, .xxh3, scratch, engine)
            let good = try files.model.digests(.xxh3)
            let place = Int(random.below(UInt64(files.model.bytes.count)))
            var other = files.model
            other.bytes[place] ^= 1
            let bad = try other.digests(.xxh3)
            let damage = try await engine.run { () async throws(BlockError) in
                var digester = try ExtentDigester(files.sums, files.record)
                return try await digester.compare(with: bad)
            }
            let extent = place / Int(good.extentSize)
            let wanted = good == bad ? [] : [good.bytes(ofExtents: extent..<extent + 1)]
            #expect(damage.damaged == wanted, "seed \(seed), round \(round)")
        }
        await engine.shutDown()
    }

    @Test("digests are those that other programs compute")
    func known() throws {
        let text = Array("abc".utf8)
        let sha = try text.withUnsafeBytes { try DigestAlgorithm.sha256.digest($0) }
        #expect(sha.prefix(4) == [0xba, 0x78, 0x16, 0xbf] && sha.suffix(2) == [0x15, 0xad])
        // XXH3_128bits of nothing, in its canonical form.
        let empty = try [UInt8]().withUnsafeBytes { try DigestAlgorithm.xxh3.digest($0) }
        #expect(empty.prefix(4) == [0x99, 0xaa, 0x06, 0xd3] && empty.suffix(2) == [0x49, 0x7f])
    }

    @Test("a drive has 16,384 extents at most, and none is smaller than a MiB")
    func extentSizes() {
        #expect(ContentDigests.extentSize(forDrive: 0) == 1 << 20)
        #expect(ContentDigests.extentSize(forDrive: 16 << 30) == 1 << 20)
        #expect(ContentDigests.extentSize(forDrive: (16 << 30) + 1) == 2 << 20)
        #expect(ContentDigests.extentSize(forDrive: 15 << 40) == 1 << 30)
    }

    @Test("15 TiB of zeroes have their digests at once, in one entry")
    func large() async throws {
        let engine = ThreadsEngine(name: "digests")
        let scratch = try TemporaryDirectory()
        let size: UInt64 = 15 << 40
        let sums = try await BlockSums.create(
            at: scratch.file("sums"), driveSize: size, algorithm: .xxh3, on: engine)
        let path = scratch.file("record")
        let record = try JobRecord.create(at: path, driveSize: size, clusterSize: 65536, engine: engine)
        let content = try await engine.run { () async throws(BlockError) in
            let all = 0..<Int(size / 65536)
            try record.bits.done.reserve(all)
            record.bits.done.set(all)
            var digester = try ExtentDigester(sums, record)
            return try await digester.compute()
        }
        #expect(content.entries == [.zeroes(0..<15360)])
        await engine.shutDown()
    }

    /// Told on an engine's thread, seen from there and elsewhere.
    private final class Told: Sendable {
        private let state = Mutex((asked: 0, isCancelled: false))
        var asked: Int { state.withLock { $0.asked } }
        func cancel() { state.withLock { $0.isCancelled = true } }
        func ask() -> Bool {
            state.withLock { state in
                state.asked += 1
                return state.isCancelled
            }
        }
    }

    @Test("others on the engine have their turn meanwhile, and can cancel it", arguments: [false, true])
    func cancelled(comparing: Bool) async throws {
        let engine = ThreadsEngine(name: "digests")
        let scratch = try TemporaryDirectory()
        let size: UInt64 = 15 << 40
        let sums = try await BlockSums.create(
            at: scratch.file("sums"), driveSize: size, algorithm: .xxh3, on: engine)
        let path = scratch.file("record")
        let record = try JobRecord.create(at: path, driveSize: size, clusterSize: 65536, engine: engine)
        let told = Told()
        let expected = ContentDigests(algorithm: .xxh3, driveSize: size, entries: [.zeroes(0..<15360)])
        let work = { @Sendable () async throws(BlockError) in
            let all = 0..<Int(size / 65536)
            try record.bits.done.reserve(all)
            record.bits.done.set(all)
            var digester = try ExtentDigester(sums, record, isCancelled: { told.ask() })
            if comparing {
                _ = try await digester.compare(with: expected)
            } else {
                _ = try await digester.compute()
            }
        }
        let (begun, begins) = AsyncStream.makeStream(of: Void.self)
        let other = Task {
            await engine.run {
                begins.finish()
                while told.asked == 0 { await Task.yield() }
                // All of it is found in memory: only who gives way lets this come to its end.
                for _ in 0..<1000 { await Task.yield() }
                told.cancel()
            }
        }
        // It is on the engine, whose turns are in order.
        for await _ in begun {}
        let error = await #expect(throws: BlockError.self) { try await engine.run(work) }
        #expect(error?.code == .cancelled)
        #expect(told.asked < 15360)
        await other.value
        await engine.shutDown()
    }
}
