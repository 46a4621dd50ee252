internal import BlockIO

/// What is copied before the plan's turn comes.
extension CopyLoop {
    /// How much staging may hold, in bytes and as a part of all that it may take, before only copies of what was saved go first.
    private static let mostStaged: UInt64 = 512 << 20
    private static let mostOfLimit: UInt64 = 4

    /// Where a guest writes one piece behind the other, what it will come to: then that needs no saving. Not once staging holds
    /// much, which only copies of what was saved relieve; and not what may yet be cloned.
    func nextAhead() -> Range<Int>? {
        guard options.sync == .full, state.value.cloning == .over,
            let range = point.state.value.writes.ahead?.clamped(to: source.range), !range.isEmpty
        else { return nil }
        let usage = point.staging.usage
        guard usage.used <= min(Self.mostStaged, usage.limit / Self.mostOfLimit) else { return nil }
        var rest = point.clusters(of: range)
        while !rest.isEmpty {
            let (standing, end) = state.withState { $0.map.run(in: rest) }
            if standing == .toCopy { return run(from: rest.lowerBound, where: isToCopy) }
            rest = end..<rest.upperBound
        }
        return nil
    }

    /// The next clusters of which the guest has overwritten something, contiguous ones together; and, where all of the drive is
    /// copied, what follows them: a guest that writes here and there must not cut the copy into single clusters.
    func nextUrgent() -> Range<Int>? {
        while let first = point.state.value.urgent.first {
            if isUrgent(first) {
                return run(from: first, where: options.sync == .full ? isToCopy : isUrgent)
            }
            point.state.value.urgent.removeFirst()
        }
        if point.state.value.urgent.isIncomplete {
            point.refillUrgent()
            if point.state.value.urgent.first != nil { return nextUrgent() }
        }
        return point.record.isCancelled ? nextFrozen() : nil
    }

    /// After the good end of `none`: what is frozen is copied, also where a save has come to nothing.
    private func nextFrozen() -> Range<Int>? {
        var next = 0
        while let cluster = point.firstFrozen(after: next) {
            if isToCopy(cluster) {
                return run(from: cluster) { isToCopy($0) && point.record.bits.frozen.isSet($0) }
            }
            next = cluster + 1
        }
        return nil
    }

    private func run(from first: Int, where isAlike: (Int) -> Bool) -> Range<Int> {
        let most = max(1, Int(chunkSize / clusterSize))
        var end = first + 1
        while end < point.clusterCount, end - first < most, isAlike(end) { end += 1 }
        return first..<end
    }

    private func isToCopy(_ cluster: Int) -> Bool { state.value.map.standing(of: cluster) == .toCopy }

    private func isUrgent(_ cluster: Int) -> Bool {
        guard isToCopy(cluster) else { return false }
        if point.record.isCancelled && !point.record.bits.frozen.isSet(cluster) { return false }
        return point.isTouched(cluster)
    }
}
