/// A set of clusters, host clusters that are free for example, as runs in their order.
struct ClusterRuns: Sendable {
    private(set) var runs: [Range<UInt64>] = []

    var isEmpty: Bool { runs.isEmpty }

    /// Adds clusters that are not in it; false, and nothing is added, when one of them is.
    @discardableResult
    mutating func insert(_ clusters: Range<UInt64>) -> Bool {
        guard !clusters.isEmpty else { return true }
        let index = firstIndex(atOrAfter: clusters.lowerBound)
        guard index == runs.count || runs[index].lowerBound >= clusters.upperBound,
            index == 0 || runs[index - 1].upperBound <= clusters.lowerBound
        else { return false }
        let joinsBefore = index > 0 && runs[index - 1].upperBound == clusters.lowerBound
        let joinsAfter = index < runs.count && runs[index].lowerBound == clusters.upperBound
        switch (joinsBefore, joinsAfter) {
        case (true, true):
            runs[index - 1] = runs[index - 1].lowerBound..<runs[index].upperBound
            runs.remove(at: index)
        case (true, false): runs[index - 1] = runs[index - 1].lowerBound..<clusters.upperBound
        case (false, true): runs[index] = clusters.lowerBound..<runs[index].upperBound
        case (false, false): runs.insert(clusters, at: index)
        }
        return true
    }

    /// The parts of a range of clusters that are not in it.
    func missing(from clusters: Range<UInt64>) -> [Range<UInt64>] {
        var parts: [Range<UInt64>] = []
        var start = clusters.lowerBound
        var index = firstIndex(atOrAfter: start)
        if index > 0, runs[index - 1].upperBound > start { index -= 1 }
        while start < clusters.upperBound, index < runs.count, runs[index].lowerBound < clusters.upperBound {
            if runs[index].lowerBound > start { parts.append(start..<runs[index].lowerBound) }
            start = max(start, runs[index].upperBound)
            index += 1
        }
        if start < clusters.upperBound { parts.append(start..<clusters.upperBound) }
        return parts
    }

    /// Takes out the last clusters, at most so many in at most so many runs.
    mutating func takeLast(_ count: UInt64, runs limit: Int) -> [Range<UInt64>] {
        var taken: [Range<UInt64>] = []
        var missing = count
        while missing > 0, taken.count < limit, let run = runs.popLast() {
            let part = run.lowerBound..<min(run.upperBound, run.lowerBound + missing)
            if part.upperBound < run.upperBound { runs.append(part.upperBound..<run.upperBound) }
            missing -= UInt64(part.count)
            taken.append(part)
        }
        return taken
    }

    /// Takes out the run that ends at `end`; nil when there is none.
    mutating func takeRun(endingAt end: UInt64) -> Range<UInt64>? {
        guard let last = runs.last, last.upperBound == end else { return nil }
        runs.removeLast()
        return last
    }

    private func firstIndex(atOrAfter cluster: UInt64) -> Int {
        var (low, high) = (0, runs.count)
        while low < high {
            let middle = (low + high) / 2
            if runs[middle].lowerBound < cluster { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
