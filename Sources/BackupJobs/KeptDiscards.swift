internal import BlockIO

/// Discards that were answered and not passed on, since a job still needs what the drive holds there.
///
/// Ranges in the order of the drive, none touching another; those that are on their way to the drive are kept apart.
/// To lose one is allowed, a discard is advice: beyond a bound the ones that come later are dropped.
struct KeptDiscards {
    /// A drive trimmed in one go is one range; a bound for the others.
    static let bound = 65536

    private var ranges: [ByteRange] = []
    private var passing: [ByteRange] = []

    var isEmpty: Bool { ranges.isEmpty && passing.isEmpty }
    var isAnyKept: Bool { !ranges.isEmpty }

    /// Keeps one more; joins it with those that it touches.
    mutating func keep(_ range: ByteRange) {
        guard !range.isEmpty else { return }
        let first = index(endingAtOrAfter: range.offset)
        var last = first
        var (start, end) = (range.offset, range.end)
        while last < ranges.count, ranges[last].offset <= range.end {
            start = min(start, ranges[last].offset)
            end = max(end, ranges[last].end)
            last += 1
        }
        guard last > first || ranges.count < Self.bound else { return }
        ranges.replaceSubrange(first..<last, with: CollectionOfOne(ByteRange(start..<end)))
    }

    /// A write or zero has arrived: what it touches is not to be discarded any more.
    mutating func drop(_ range: ByteRange) {
        guard !ranges.isEmpty else { return }
        let first = index(endingAtOrAfter: range.offset + 1)
        var last = first
        var rest: [ByteRange] = []
        while last < ranges.count, ranges[last].offset < range.end {
            let kept = ranges[last]
            if kept.offset < range.offset { rest.append(ByteRange(kept.offset..<range.offset)) }
            if kept.end > range.end { rest.append(ByteRange(range.end..<kept.end)) }
            last += 1
        }
        // One that is cut in two makes one more: at the bound the smaller part is forgotten.
        if rest.count > last - first, ranges.count >= Self.bound,
            let smaller = rest.min(by: { $0.length < $1.length })
        {
            rest.removeAll { $0 == smaller }
        }
        if last > first { ranges.replaceSubrange(first..<last, with: rest) }
    }

    /// Whether anything is kept in `range`.
    func isAnyKept(in range: ByteRange) -> Bool {
        guard !ranges.isEmpty, let next = next(after: range.offset) else { return false }
        return next.offset < range.end
    }

    /// The first kept range that reaches beyond `offset`.
    func next(after offset: UInt64) -> ByteRange? {
        let index = index(endingAtOrAfter: offset + 1)
        guard index < ranges.count else { return nil }
        return ranges[index].dropFirst(offset > ranges[index].offset ? offset - ranges[index].offset : 0)
    }

    /// Kept -> on its way to the drive.
    mutating func beginPassing(_ range: ByteRange) {
        drop(range)
        passing.append(range)
    }

    mutating func endPassing(_ range: ByteRange) {
        guard let index = passing.firstIndex(of: range) else {
            preconditionFailure("a discard is passed on once")
        }
        passing.remove(at: index)
    }

    func isPassing(_ range: ByteRange) -> Bool { passing.contains { $0.overlaps(range) } }

    /// The first range whose end is not before `offset`.
    private func index(endingAtOrAfter offset: UInt64) -> Int {
        var (low, high) = (0, ranges.count)
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].end < offset { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
