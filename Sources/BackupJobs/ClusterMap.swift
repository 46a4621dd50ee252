internal import BlockIO

/// Where each cluster of a job stands: exactly one of to copy, in flight, done.
///
/// *Done* is a bit in the job's record, and nothing else (DATAPATH.md rule 3); a cluster that is not needed is as good as
/// done. Clusters in flight are few and kept as ranges: after a kill they are to copy. All others are to copy.
struct ClusterMap {
    enum Standing: Sendable, Hashable { case toCopy, inFlight, done, notNeeded }

    private let record: JobRecord
    private var inFlight: [Range<Int>] = []
    let count: Int

    init(_ record: JobRecord) {
        self.record = record
        count = Int(record.driveSize.dividedRoundingUp(by: record.clusterSize))
    }

    var isAnyInFlight: Bool { !inFlight.isEmpty }

    func standing(of cluster: Int) -> Standing {
        if record.bits.done.isSet(cluster) { return .done }
        if record.bits.notNeeded.isSet(cluster) { return .notNeeded }
        return inFlight.contains { $0.contains(cluster) } ? .inFlight : .toCopy
    }

    /// How the first of `clusters` stands, and up to where that goes on.
    func run(in clusters: Range<Int>) -> (standing: Standing, end: Int) {
        let standing = standing(of: clusters.lowerBound)
        var end = clusters.upperBound
        let bits = record.bits
        switch standing {
        case .done:
            end = bits.done.first(in: clusters, where: false) ?? end
        case .notNeeded:
            end = bits.notNeeded.first(in: clusters, where: false) ?? end
            end = bits.done.first(in: clusters.lowerBound..<end) ?? end
        case .toCopy:
            end = bits.done.first(in: clusters) ?? end
            end = bits.notNeeded.first(in: clusters.lowerBound..<end) ?? end
            for other in inFlight where other.lowerBound > clusters.lowerBound {
                end = min(end, other.lowerBound)
            }
        case .inFlight:
            for other in inFlight where other.contains(clusters.lowerBound) {
                end = min(end, other.upperBound)
            }
        }
        return (standing, end)
    }

    /// The first cluster that is to copy, after the plan has gone past it.
    func firstToCopy() -> Range<Int>? {
        var next = 0
        while next < count {
            let (standing, end) = run(in: next..<count)
            if standing == .toCopy { return next..<end }
            next = end
        }
        return nil
    }

    /// To copy -> in flight. Takes the space in the record that `finish` needs.
    mutating func begin(_ clusters: Range<Int>) throws(BlockError) {
        let (standing, end) = run(in: clusters)
        precondition(
            standing == .toCopy && end == clusters.upperBound, "only what is to copy can be put in flight")
        try record.bits.done.reserve(clusters)
        inFlight.append(clusters)
    }

    /// In flight -> done.
    mutating func finish(_ clusters: Range<Int>) {
        land(clusters)
        record.bits.done.set(clusters)
    }

    /// In flight -> done, as far as they are in `parts` and the record has space for that; the others are to copy. Returns
    /// the parts that are done.
    mutating func finish(_ parts: [Range<Int>], of clusters: Range<Int>) -> [Range<Int>] {
        land(clusters)
        // What is set in one step as a whole may need less space than its parts.
        return parts.filter { part in
            guard (try? record.bits.done.reserve(part)) != nil else { return false }  // met again by its copy
            record.bits.done.set(part)
            return true
        }
    }

    /// In flight -> to copy, after a failure.
    mutating func giveUp(_ clusters: Range<Int>) { land(clusters) }

    private mutating func land(_ clusters: Range<Int>) {
        guard let index = inFlight.firstIndex(of: clusters) else {
            preconditionFailure("what lands was in flight")
        }
        inFlight.swapAt(index, inFlight.count - 1)
        inFlight.removeLast()
    }
}
