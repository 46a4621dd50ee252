internal import BlockIO

/// Where new host clusters come from.
///
/// Clusters are taken in *reserves* of some MiB whose refcounts are raised before any of them is handed out: whatever the
/// order in which a crash finds the rest, a cluster that is referred to is never free. A reserve is taken from what was
/// freed while the image is open and, in a drive, from what its refcounts say is free inside of it; else the file
/// grows, so that what is written in order lies in order. New refcount blocks and tables always lie at the end.
struct AllocatorState {
    typealias ReserveRun = MappingJournal.ReserveRun

    /// The autoclear bits are cleared and `position` is found.
    var isPrepared = false
    /// No host cluster from here on is in use.
    var position: UInt64 = 0
    /// Clusters whose refcounts are 1 and that nothing refers to yet; the last run is used first.
    private(set) var reserve: [ReserveRun] = []
    /// How many clusters are in it.
    private(set) var reserveCount: UInt64 = 0
    /// Enlarges the reserve of a drive before it is used up.
    var refill: Task<Void, Never>?
    /// The last one of these failed: the next one who finds no reserve tries, and meets the error.
    var refillFailed = false
    /// Clusters that lost a reference that the tables on the disk may still have.
    private(set) var freed: [FreedRun] = []
    /// Those that the tables on the disk have lost as well; their refcounts are lowered when no request uses them.
    var unmapped: [FreedRun] = []
    /// Clusters with a refcount of 0 in front of `position`, ours to use.
    var free = ClusterRuns()
    /// The part of the image in which nobody has looked yet for clusters that are free.
    var unsearched: Range<UInt64> = 0..<0
    /// How many clusters are in `freed`.
    private(set) var freedCount: UInt64 = 0
    /// How many of them the write-back that runs unmaps.
    var unmappingCount: UInt64 = 0
    /// The file is not cut shorter than this.
    var minimumFileSize: UInt64 = 0
    /// A change of the refcount structures was given up halfway: nothing may be written any more.
    var failure: BlockError?

    struct FreedRun {
        var clusters: Range<UInt64>
        /// Requests that began before may still use the clusters.
        var moment: UInt64
    }

    var hasReserve: Bool { !reserve.isEmpty }

    /// `runs` are used from the last one on.
    mutating func setReserve(_ runs: [ReserveRun]) {
        reserve = runs
        reserveCount = runs.reduce(0) { $0 + UInt64($1.clusters.count) }
    }

    /// Takes up to `count` clusters from the reserve, contiguous ones.
    mutating func take(_ count: UInt64) -> ReserveRun? {
        guard let run = reserve.popLast() else { return nil }
        let end = min(run.clusters.upperBound, run.clusters.lowerBound + count)
        if end < run.clusters.upperBound {
            reserve.append(ReserveRun(clusters: end..<run.clusters.upperBound, isUnused: run.isUnused))
        }
        reserveCount -= end - run.clusters.lowerBound
        return ReserveRun(clusters: run.clusters.lowerBound..<end, isUnused: run.isUnused)
    }

    mutating func free(_ clusters: Range<UInt64>, at moment: UInt64) {
        freedCount += UInt64(clusters.count)
        if let last = freed.last, last.moment == moment, last.clusters.upperBound == clusters.lowerBound {
            freed[freed.count - 1].clusters = last.clusters.lowerBound..<clusters.upperBound
        } else {
            freed.append(FreedRun(clusters: clusters, moment: moment))
        }
    }

    mutating func takeFreed() -> [FreedRun] {
        defer { freed = [] }
        freedCount = 0
        return freed
    }

    mutating func putBackFreed(_ runs: [FreedRun]) {
        freed.insert(contentsOf: runs, at: 0)
        freedCount += runs.reduce(0) { $0 + UInt64($1.clusters.count) }
    }
}
