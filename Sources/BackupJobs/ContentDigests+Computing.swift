package import BlockIO

/// Computes what a manifest has of a content, and compares it, from the digests of a job's blocks. On the drive's engine.
struct ExtentDigester {
    let sums: BlockSums
    let record: JobRecord
    /// What was not copied reads as zeroes, not as what lies below.
    let restIsZero: Bool
    private let content: ContentDigests
    private var reader: BlockSumsReader
    /// What was looked at since others had their turn, in blocks.
    private var sinceOthersRan = 0
    private let isCancelled: () -> Bool

    /// `isCancelled` is asked before each extent at least; once it says so, what runs throws `.cancelled`.
    init(
        _ sums: BlockSums, _ record: JobRecord, extentSize: UInt64? = nil, restIsZero: Bool = false,
        isCancelled: @escaping () -> Bool = { false }
    ) throws(BlockError) {
        self.isCancelled = isCancelled
        self.sums = sums
        self.record = record
        self.restIsZero = restIsZero
        content = ContentDigests(
            algorithm: sums.algorithm, driveSize: sums.driveSize, extentSize: extentSize)
        reader = try BlockSumsReader(sums)
    }

    /// To be called before `blocks` are looked at. Now and then the engine's other work, guests' requests among it, has its turn:
    /// what is found in memory never waits by itself.
    private mutating func letOthersRun(_ blocks: Int) async throws(BlockError) {
        guard !isCancelled() else {
            throw BlockError(.cancelled, "Couldn't take the digests of the content: the job was given up")
        }
        // An extent is a read and a few digests, however few blocks it has.
        sinceOthersRan += max(blocks, 256)
        guard sinceOthersRan >= 16384 else { return }
        sinceOthersRan = 0
        await Task.yield()
    }

    // MARK: Computing

    /// The digests of all that the job has copied, but for blocks of which something is missing.
    mutating func compute() async throws(BlockError) -> ContentDigests {
        var result = content
        var extent = 0
        while let found = nextCopied(from: extent) {
            extent = found + 1
            let blocks = content.blocks(of: found)
            try await letOthersRun(blocks.count)
            guard let covered = covered(blocks) else { continue }
            let digests = try await reader.digests(of: blocks)
            if covered.isEmpty, reader.isZero(blocks, digests) {
                if case .zeroes(let run) = result.entries.last, run.upperBound == found {
                    result.entries[result.entries.count - 1] = .zeroes(run.lowerBound..<found + 1)
                } else {
                    result.entries.append(.zeroes(found..<found + 1))
                }
                continue
            }
            let digest = try await digest(of: blocks, covered, digests)
            result.entries.append(
                .extent(.init(number: found, digest: digest, covered: covered.isEmpty ? nil : covered)))
        }
        return result
    }

    /// The first extent, from a number on, of which something was copied.
    private func nextCopied(from extent: Int) -> Int? {
        guard extent < content.extentCount else { return nil }
        let clusters = clusters(of: content.blocks(of: extent))
        let all = Int(record.driveSize.dividedRoundingUp(by: record.clusterSize))
        guard let cluster = record.bits.done.first(in: clusters.lowerBound..<all) else { return nil }
        return max(extent, Int(UInt64(cluster) * record.clusterSize / content.extentSize))
    }

    /// The runs of an extent's blocks that are copied and whole, from its first on: nil for none, empty for all.
    private func covered(_ blocks: Range<Int>) -> [Range<Int>]? {
        let clusters = clusters(of: blocks)
        let bytes = content.bytes(ofBlocks: blocks)
        let saved =
            Int(
                bytes.offset / JobRecord.blockSize)..<Int(
                bytes.end.dividedRoundingUp(by: JobRecord.blockSize))
        if record.bits.done.first(in: clusters, where: false) == nil, !record.bits.missing.isAnySet(in: saved)
        {
            return []
        }
        var runs: [Range<Int>] = []
        for block in blocks where isCovered(block) {
            let number = block - blocks.lowerBound
            if let last = runs.last, last.upperBound == number {
                runs[runs.count - 1] = last.lowerBound..<number + 1
            } else {
                runs.append(number..<number + 1)
            }
        }
        return runs.isEmpty ? nil : runs
    }

    private func isCovered(_ block: Int) -> Bool { isCopied(block) && !isMissing(block) }

    private func isCopied(_ block: Int) -> Bool {
        record.bits.done.isSet(Int(UInt64(block) * ContentDigests.blockSize / record.clusterSize))
    }

    private func isMissing(_ block: Int) -> Bool {
        let bytes = content.bytes(ofBlocks: block..<block + 1)
        return record.bits.missing.isAnySet(
            in: Int(
                bytes.offset / JobRecord.blockSize)..<Int(
                    bytes.end.dividedRoundingUp(by: JobRecord.blockSize)))
    }

    private func clusters(of blocks: Range<Int>) -> Range<Int> {
        let bytes = content.bytes(ofBlocks: blocks)
        return Int(
            bytes.offset / record.clusterSize)..<Int(bytes.end.dividedRoundingUp(by: record.clusterSize))
    }

    // MARK: Digests

    /// The digest of the covered blocks' digests; `covered` is empty for all.
    private mutating func digest(
        of blocks: Range<Int>, _ covered: [Range<Int>], _ digests: IOSlice?
    ) async throws(BlockError) -> [UInt8] {
        let length = sums.algorithm.length
        if let digests, covered.isEmpty {
            return try sums.algorithm.digest(UnsafeRawBufferPointer(digests.bytes))
        }
        var joined: [UInt8] = []
        joined.reserveCapacity(blocks.count * length)
        for run in covered.isEmpty ? [0..<blocks.count] : covered {
            if let digests {
                joined.append(contentsOf: digests[run.lowerBound * length..<run.upperBound * length].bytes)
                continue
            }
            for number in run {
                // The extents of very large drives have millions of blocks.
                if number % 16384 == 16383 { try await letOthersRun(16384) }
                joined.append(contentsOf: reader.zero(blocks.lowerBound + number))
            }
        }
        return try sums.algorithm.digest(joined)
    }

    // MARK: Comparing

    /// Compares what the job has read with what `expected` says, extent by extent.
    mutating func compare(with expected: ContentDigests) async throws(BlockError) -> ContentDamage {
        var damage = ContentDamage()
        for entry in expected.entries {
            for extent in entry.extents {
                let blocks = content.blocks(of: extent)
                try await letOthersRun(blocks.count)
                var covered: [Range<Int>] = []
                if case .extent(let one) = entry { covered = one.covered ?? [] }
                let wanted = covered.isEmpty ? [0..<blocks.count] : covered
                let bytes = content.bytes(ofExtents: extent..<extent + 1)
                guard check(wanted, of: blocks, &damage) else {
                    if !hasMissing(wanted, of: blocks) { damage.add(damaged: bytes) }
                    continue
                }
                let digests = try await reader.digests(of: blocks)
                let isGood: Bool
                switch entry {
                case .zeroes: isGood = reader.isZero(blocks, digests)
                case .extent(let one): isGood = try await digest(of: blocks, covered, digests) == one.digest
                }
                if !isGood { damage.add(damaged: bytes) }
            }
        }
        return damage
    }

    /// Whether all of an extent's covered blocks were read; what could not be is noted.
    private func check(_ runs: [Range<Int>], of blocks: Range<Int>, _ damage: inout ContentDamage) -> Bool {
        let all = clusters(of: blocks)
        if record.bits.done.first(in: all, where: false) == nil,
            !record.bits.missing.isAnySet(in: saved(blocks))
        {
            return true
        }
        var isWhole = true
        for number in runs.joined() {
            let block = blocks.lowerBound + number
            if isMissing(block) {
                isWhole = false
                for run in record.bits.missing.runs(in: saved(block..<block + 1)) {
                    let size = JobRecord.blockSize
                    damage.add(
                        unreadable: ByteRange(
                            UInt64(run.lowerBound)
                                * size..<min(UInt64(run.upperBound) * size, content.driveSize)))
                }
            } else if !isCopied(block), !restIsZero {
                isWhole = false
            }
        }
        return isWhole
    }

    private func hasMissing(_ runs: [Range<Int>], of blocks: Range<Int>) -> Bool {
        runs.joined().contains { isMissing(blocks.lowerBound + $0) }
    }

    private func saved(_ blocks: Range<Int>) -> Range<Int> {
        let bytes = content.bytes(ofBlocks: blocks)
        return Int(
            bytes.offset / JobRecord.blockSize)..<Int(bytes.end.dividedRoundingUp(by: JobRecord.blockSize))
    }
}

/// Where a content is not what it should be: ranges in ascending order, adjacent ones merged.
package struct ContentDamage: Sendable, Hashable {
    /// How many ranges of a kind are kept; what is beyond is counted.
    package static let mostRanges = 4096

    package private(set) var damaged: [ByteRange] = []
    package private(set) var unreadable: [ByteRange] = []
    /// In bytes, those of ranges that are not kept included.
    package private(set) var damagedBytes: UInt64 = 0
    package private(set) var unreadableBytes: UInt64 = 0

    package init() {}

    package var isNone: Bool { damagedBytes == 0 && unreadableBytes == 0 }

    mutating func add(damaged range: ByteRange) {
        damagedBytes += range.length
        Self.add(range, to: &damaged)
    }

    mutating func add(unreadable range: ByteRange) {
        unreadableBytes += range.length
        Self.add(range, to: &unreadable)
    }

    private static func add(_ range: ByteRange, to ranges: inout [ByteRange]) {
        if let last = ranges.last, last.end == range.offset {
            ranges[ranges.count - 1] = ByteRange(last.offset..<range.end)
        } else if ranges.count < mostRanges {
            ranges.append(range)
        }
    }
}
