/// Clusters of which the guest has overwritten something, in the order in which it began: they are copied first, so that
/// staging stays small.
///
/// Bounded: what does not fit is found again by looking through the record, which knows all of them.
struct UrgentClusters {
    static let bound = 65536

    private var clusters: [Int] = []
    private var taken = 0
    /// Some did not fit, or a restart has lost the order.
    var isIncomplete = false

    mutating func append(_ cluster: Int) {
        guard clusters.count - taken < Self.bound else { return isIncomplete = true }
        clusters.append(cluster)
    }

    var first: Int? { taken < clusters.count ? clusters[taken] : nil }

    mutating func removeFirst() {
        taken += 1
        guard taken == clusters.count || taken >= 1024 else { return }
        clusters.removeFirst(taken)
        taken = 0
    }
}
