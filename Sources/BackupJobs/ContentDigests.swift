package import BlockIO

/// What is known of a content: digests, extent by extent, of what a backup covers of a drive.
///
/// The drive is divided into blocks of 64 KiB (the last one ends with the drive) and these into extents. A block has the
/// digest of its bytes, an extent the digest of the digests, one behind the other, of those of its blocks that are covered.
package struct ContentDigests: Sendable, Hashable {
    /// The size of a block in bytes.
    package static let blockSize: UInt64 = 64 << 10
    /// A drive has about that many extents at most.
    package static let mostExtents: UInt64 = 16384

    package enum Entry: Sendable, Hashable {
        /// Extents, by number, that are covered wholly and are all zero.
        case zeroes(Range<Int>)
        case extent(Extent)

        /// The numbers of the extents.
        package var extents: Range<Int> {
            switch self {
            case .zeroes(let extents): extents
            case .extent(let extent): extent.number..<extent.number + 1
            }
        }
    }

    package struct Extent: Sendable, Hashable {
        package var number: Int
        package var digest: [UInt8]
        /// Runs of covered blocks, counted from the extent's first one; nil: all of them.
        package var covered: [Range<Int>]?

        package init(number: Int, digest: [UInt8], covered: [Range<Int>]? = nil) {
            self.number = number
            self.digest = digest
            self.covered = covered
        }
    }

    package var algorithm: DigestAlgorithm
    /// In bytes.
    package var driveSize: UInt64
    /// In bytes, a power of two and a multiple of a block.
    package var extentSize: UInt64
    /// In ascending order; an extent that is in none is not covered.
    package var entries: [Entry]

    package init(
        algorithm: DigestAlgorithm, driveSize: UInt64, extentSize: UInt64? = nil, entries: [Entry] = []
    ) {
        self.algorithm = algorithm
        self.driveSize = driveSize
        self.extentSize = extentSize ?? Self.extentSize(forDrive: driveSize)
        self.entries = entries
    }

    /// The least power of two, from a MiB on, of which a drive has no more than `mostExtents`.
    package static func extentSize(forDrive size: UInt64) -> UInt64 {
        var extent: UInt64 = 1 << 20
        while size.dividedRoundingUp(by: extent) > mostExtents { extent *= 2 }
        return extent
    }

    package var extentCount: Int { Int(driveSize.dividedRoundingUp(by: extentSize)) }

    /// Whether every block is covered, but for those of which a part of `missing`, ranges in ascending order, is.
    package func isAllCovered(but missing: [ByteRange]) -> Bool {
        var left = missing[...]
        /// Whether blocks that are not covered are all touched; called in ascending order.
        func areMissing(_ blocks: Range<Int>) -> Bool {
            var next = blocks.lowerBound
            while next < blocks.upperBound {
                let bytes = bytes(ofBlocks: next..<next + 1)
                while let first = left.first, first.end <= bytes.offset || first.length == 0 {
                    left.removeFirst()
                }
                guard let first = left.first, first.offset < bytes.end else { return false }
                next = Int(first.end.dividedRoundingUp(by: Self.blockSize))
            }
            return true
        }
        var next = 0
        for entry in entries {
            let extents = entry.extents
            if next < extents.lowerBound {
                guard areMissing(blocks(of: next).lowerBound..<blocks(of: extents.lowerBound).lowerBound)
                else {
                    return false
                }
            }
            next = extents.upperBound
            guard case .extent(let extent) = entry, let covered = extent.covered else { continue }
            let all = blocks(of: extent.number)
            var end = all.lowerBound
            for run in covered {
                guard areMissing(end..<all.lowerBound + run.lowerBound) else { return false }
                end = all.lowerBound + run.upperBound
            }
            guard areMissing(end..<all.upperBound) else { return false }
        }
        return next == extentCount
            || areMissing(blocks(of: next).lowerBound..<blocks(of: extentCount - 1).upperBound)
    }

    /// The numbers, in the drive, of an extent's blocks.
    package func blocks(of extent: Int) -> Range<Int> {
        let perExtent = Int(extentSize / Self.blockSize)
        let count = Int(driveSize.dividedRoundingUp(by: Self.blockSize))
        return extent * perExtent..<min((extent + 1) * perExtent, count)
    }

    /// The bytes of extents, or of blocks.
    package func bytes(ofExtents extents: Range<Int>) -> ByteRange { bytes(extents, of: extentSize) }
    package func bytes(ofBlocks blocks: Range<Int>) -> ByteRange { bytes(blocks, of: Self.blockSize) }

    private func bytes(_ units: Range<Int>, of unit: UInt64) -> ByteRange {
        let end = min(UInt64(units.upperBound) * unit, driveSize)
        return ByteRange(min(UInt64(units.lowerBound) * unit, end)..<end)
    }
}
