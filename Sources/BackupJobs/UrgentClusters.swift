/// Clusters of which the guest has overwritten something: they are copied first, so that staging stays small.
///
/// In sweeps along the drive, and not in the order in which it began: then what is next to each other is read, written and
/// given back together. What comes up during a sweep belongs to the next one.
///
/// Bounded: what does not fit is found again by looking through the record, which knows all of them.
struct UrgentClusters {
    static let bound = 65536
    /// A sweep has so many clusters at most, since they are sorted in one step.
    private static let sweepLength = 8192

    /// The sweep under way, its end first.
    private var sweep: [Int] = []
    private var later: [Int] = []
    /// Some did not fit, or a restart has lost them.
    var isIncomplete = false

    mutating func append(_ cluster: Int) {
        guard sweep.count + later.count < Self.bound else { return isIncomplete = true }
        later.append(cluster)
    }

    /// How many there are, with those that need not be copied any more.
    var count: Int { sweep.count + later.count }

    var first: Int? {
        mutating get {
            if sweep.isEmpty, !later.isEmpty {
                sweep = later.prefix(Self.sweepLength).sorted(by: >)
                later.removeFirst(sweep.count)
            }
            return sweep.last
        }
    }

    mutating func removeFirst() { sweep.removeLast() }
}
