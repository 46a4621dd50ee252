package import BlockIO

/// Decides what is to be done with each cluster of a drive, in the drive's order, from what its extents say.
///
/// The plan asks for extents a window at a time (`.extents`), is given what the drive says of it (`supply`), and joins
/// clusters of one fate into runs, of which the copy loop takes as much as it wants. The fate of a cluster that
/// several extents touch is that of the whole:
///
///     full:  all zero -> zeroes                               else data
///     top:   nothing allocated in the top layer -> notNeeded   all zero -> zeroes   else data
///
/// Nothing here takes time by the cluster where extents are large: a hole of a TiB is one step. The window grows while
/// answers are short and shrinks when they are long, so that little is looked up ahead of the copy and an empty
/// drive is still walked quickly.
///
///     0 ........ run ........ following ........ scanned ... known ......... size
///                                                  part of a cluster
package struct CopyPlan: Sendable {
    package enum Fate: Sendable, Hashable { case data, zeroes, notNeeded }

    package enum Step: Sendable, Hashable {
        /// Ask the drive for the extents in this range, and `supply` them.
        case extents(ByteRange)
        /// Do this next, all of it or the start of it, and `take` what is being done.
        case run(Fate, ByteRange)
        /// Nothing is left.
        case finished
    }

    private struct Run {
        var fate: Fate
        var range: ByteRange
    }

    private static let smallestWindow: UInt64 = 64 << 20
    private static let largestWindow: UInt64 = 1 << 42
    /// Data runs are not taken before they are this long, if more may follow.
    private let joinLength: UInt64
    private let size: UInt64
    private let clusterSize: UInt64
    private let sync: BackupJob.Options.Sync

    private var window = CopyPlan.smallestWindow
    private var extents: [Extent] = []
    private var nextExtent = 0
    private var run: Run?
    private var following: Run?
    /// All before this belongs to runs.
    private var scanned: UInt64 = 0
    /// All before this is known; more than `scanned` where a cluster is known in part.
    private var known: UInt64 = 0
    private var partIsZero = true
    private var partIsAllocated = false

    /// A plan for a drive of `size` bytes in clusters of `clusterSize`; `joinLength` is the chunk to be made of data.
    package init(size: UInt64, clusterSize: UInt64, sync: BackupJob.Options.Sync, joinLength: UInt64) {
        precondition(clusterSize.nonzeroBitCount == 1, "a cluster's size is a power of two")
        self.size = size
        self.clusterSize = clusterSize
        self.sync = sync
        self.joinLength = joinLength
    }

    /// What comes next; says the same again until something is supplied or taken.
    package mutating func next() -> Step {
        digest()
        let mayGrow = following == nil && known < size
        if let run, run.fate != .data || run.range.length >= joinLength || !mayGrow {
            return .run(run.fate, run.range)
        }
        return mayGrow ? .extents(ByteRange(offset: known, length: min(window, size - known))) : .finished
    }

    /// Takes the first `length` bytes of the run that `next` named: whole clusters, or all of it.
    package mutating func take(_ length: UInt64) -> ByteRange {
        guard let current = run else { preconditionFailure("only what next() named can be taken") }
        let taken = current.range.prefix(length)
        let rest = current.range.dropFirst(length)
        if rest.isEmpty {
            run = following
            following = nil
        } else {
            precondition(rest.offset & (clusterSize - 1) == 0, "a run is taken by whole clusters")
            run?.range = rest
        }
        return taken
    }

    /// Takes in what the drive says of the range that `next` asked about.
    package mutating func supply(_ answer: [Extent]) {
        precondition(nextExtent == extents.count, "extents are supplied when they were asked for")
        let asked = ByteRange(offset: known, length: min(window, size - known))
        var end = asked.offset
        for extent in answer {
            precondition(
                extent.range.offset == end && !extent.range.isEmpty && extent.range.end <= asked.end,
                "extents begin where they were asked for, follow each other and stay in the range")
            end = extent.range.end
        }
        precondition(end > asked.offset, "a drive says something about every byte")
        extents = answer
        nextExtent = 0
        if answer.count > 1024 {
            window = Self.smallestWindow
        } else if answer.count <= 64 && end == asked.end {
            window = min(window * 4, Self.largestWindow)
        }
    }

    /// Takes in that the drive could not say anything of the range: one cluster of it counts as data.
    package mutating func supplyUnknown() {
        let end = min(size, known.roundedDown(toMultipleOf: clusterSize) + clusterSize)
        extents = [Extent(ByteRange(known..<end), isZero: false, isAllocated: true)]
        nextExtent = 0
        window = Self.smallestWindow
    }

    // MARK: Extents to runs

    /// Moves extents into runs until one run is complete, which shows in that another follows.
    private mutating func digest() {
        while following == nil, nextExtent < extents.count {
            let extent = extents[nextExtent]
            let rest = ByteRange(known..<extent.range.end)
            let whole = rest.end == size ? rest.length : rest.length.roundedDown(toMultipleOf: clusterSize)
            if known == scanned && whole > 0 {
                append(rest.prefix(whole), fate(extent.isZero, extent.isAllocated))
                known = scanned
            } else {
                let clusterEnd = min(size, scanned.roundedDown(toMultipleOf: clusterSize) + clusterSize)
                partIsZero = partIsZero && extent.isZero
                partIsAllocated = partIsAllocated || extent.isAllocated
                known = min(clusterEnd, rest.end)
                if known == clusterEnd {
                    append(ByteRange(scanned..<clusterEnd), fate(partIsZero, partIsAllocated))
                    partIsZero = true
                    partIsAllocated = false
                }
            }
            if known == extent.range.end { nextExtent += 1 }
        }
    }

    private mutating func append(_ range: ByteRange, _ fate: Fate) {
        if var current = run {
            if current.fate == fate, following == nil {
                current.range = ByteRange(current.range.offset..<range.end)
                run = current
            } else {
                following = Run(fate: fate, range: range)
            }
        } else {
            run = Run(fate: fate, range: range)
        }
        scanned = range.end
    }

    private func fate(_ isZero: Bool, _ isAllocated: Bool) -> Fate {
        if sync != .full && !isAllocated { return .notNeeded }
        return isZero ? .zeroes : .data
    }
}
