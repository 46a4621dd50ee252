package import BlockIO

/// Where each cluster of a job stands: exactly one of to copy, in flight, done.
///
/// A cluster that is not needed is as good as done. One bit a cluster says *done*; clusters in flight are few and kept as
/// ranges; all others are to copy. The bits are kept in regions of 2^15 clusters (2 GiB of the drive with 64-KiB
/// clusters) which share two constant arrays while they are all clear or all set: a region has memory of its own
/// only while it is half done. A 15-TiB drive needs at most 30 MiB, and as a rule a few pages.
package struct ClusterMap: Sendable {
    package enum Standing: Sendable, Hashable { case toCopy, inFlight, done }

    private static let regionClusters = 1 << 15
    private static let noneDone = [UInt64](repeating: 0, count: regionClusters / 64)
    private static let allDone = [UInt64](repeating: .max, count: regionClusters / 64)

    /// The drive's size in bytes.
    package let size: UInt64
    /// In bytes, a power of two.
    package let clusterSize: UInt64
    package let count: Int
    /// How many clusters are done.
    package private(set) var doneCount = 0

    private let shift: UInt64
    private var regions: [[UInt64]]
    private var openInRegion: [Int]
    private var inFlight: [Range<Int>] = []

    /// All clusters of `size` bytes are to copy; the last may be short.
    package init(size: UInt64, clusterSize: UInt64) {
        precondition(clusterSize.nonzeroBitCount == 1, "a cluster's size is a power of two")
        self.size = size
        self.clusterSize = clusterSize
        shift = UInt64(clusterSize.trailingZeroBitCount)
        count = Int((size >> shift) + (size & (clusterSize - 1) == 0 ? 0 : 1))
        let regionCount = (count + Self.regionClusters - 1) / Self.regionClusters
        regions = Array(repeating: Self.noneDone, count: regionCount)
        openInRegion = Array(repeating: Self.regionClusters, count: regionCount)
        let last = count % Self.regionClusters
        if last > 0 { openInRegion[regionCount - 1] = last }
    }

    package var isComplete: Bool { doneCount == count }
    package var isAnyInFlight: Bool { !inFlight.isEmpty }

    /// The standing of the cluster that holds the byte at `offset`.
    package func standing(at offset: UInt64) -> Standing {
        precondition(offset < size, "the offset lies on the drive")
        let cluster = Int(offset >> shift)
        if isDone(cluster) { return .done }
        return inFlight.contains { $0.contains(cluster) } ? .inFlight : .toCopy
    }

    // MARK: Steps. Ranges consist of whole clusters, the drive's end excepted.

    /// To copy -> in flight.
    package mutating func begin(_ range: ByteRange) {
        let clusters = clusters(of: range)
        precondition(isToCopy(clusters), "only what is to copy can be put in flight")
        inFlight.append(clusters)
    }

    /// In flight -> done.
    package mutating func finish(_ range: ByteRange) {
        let clusters = clusters(of: range)
        land(clusters)
        setDone(clusters)
    }

    /// In flight -> to copy, after a failure.
    package mutating func giveUp(_ range: ByteRange) {
        land(clusters(of: range))
    }

    /// To copy -> done, with nothing to be copied.
    package mutating func pass(_ range: ByteRange) {
        let clusters = clusters(of: range)
        precondition(isToCopy(clusters), "only what is to copy can be passed over")
        setDone(clusters)
    }

    // MARK: Bits

    private func clusters(of range: ByteRange) -> Range<Int> {
        precondition(
            range.offset & (clusterSize - 1) == 0 && !range.isEmpty
                && (range.end == size || range.end < size && range.end & (clusterSize - 1) == 0),
            "a job's steps are about whole clusters")
        let first = Int(range.offset >> shift)
        return first..<(range.end == size ? count : Int(range.end >> shift))
    }

    private mutating func land(_ clusters: Range<Int>) {
        guard let index = inFlight.firstIndex(of: clusters) else {
            preconditionFailure("what lands was in flight")
        }
        inFlight.swapAt(index, inFlight.count - 1)
        inFlight.removeLast()
    }

    private func isDone(_ cluster: Int) -> Bool {
        let bit = cluster % Self.regionClusters
        return regions[cluster / Self.regionClusters][bit / 64] & (1 << UInt64(bit % 64)) != 0
    }

    private func isToCopy(_ clusters: Range<Int>) -> Bool {
        guard !inFlight.contains(where: { $0.overlaps(clusters) }) else { return false }
        var isClear = true
        Self.forEachRegion(of: clusters) { region, bits in
            guard isClear, openInRegion[region] < clusterCount(ofRegion: region) else { return }
            Self.forEachWord(of: bits) { word, mask in
                if regions[region][word] & mask != 0 { isClear = false }
            }
        }
        return isClear
    }

    private mutating func setDone(_ clusters: Range<Int>) {
        doneCount += clusters.count
        Self.forEachRegion(of: clusters) { region, bits in
            openInRegion[region] -= bits.count
            if openInRegion[region] == 0 {
                regions[region] = Self.allDone
            } else {
                Self.forEachWord(of: bits) { word, mask in regions[region][word] |= mask }
            }
        }
    }

    private func clusterCount(ofRegion region: Int) -> Int {
        min(Self.regionClusters, count - region * Self.regionClusters)
    }

    /// Calls `body` with each region that `clusters` touch, and the bits in it.
    private static func forEachRegion(of clusters: Range<Int>, _ body: (Int, Range<Int>) -> Void) {
        var next = clusters.lowerBound
        while next < clusters.upperBound {
            let region = next / regionClusters
            let start = region * regionClusters
            let end = min(clusters.upperBound, start + regionClusters)
            body(region, next - start..<end - start)
            next = end
        }
    }

    /// Calls `body` with each word that `bits` touch, and the mask of those bits in it.
    private static func forEachWord(of bits: Range<Int>, _ body: (Int, UInt64) -> Void) {
        var next = bits.lowerBound
        while next < bits.upperBound {
            let word = next / 64
            let end = min(bits.upperBound, word * 64 + 64)
            let mask = (UInt64.max >> UInt64(64 - (end - next))) << UInt64(next % 64)
            body(word, mask)
            next = end
        }
    }
}
