/// A first-come-first-served lock for tasks of one engine, held over `await`s; lives in engine-isolated state.
struct EngineLock {
    private var isHeld = false
    private var waiting: [CheckedContinuation<Void, Never>] = []

    /// True when the caller holds the lock now; otherwise it is to `wait`.
    mutating func tryAcquire() -> Bool {
        if isHeld { return false }
        isHeld = true
        return true
    }

    /// When `continuation` is resumed, its task holds the lock.
    mutating func wait(_ continuation: CheckedContinuation<Void, Never>) { waiting.append(continuation) }

    mutating func release() {
        precondition(isHeld, "a lock is released by its holder")
        if waiting.isEmpty { isHeld = false } else { waiting.removeFirst().resume() }
    }
}

/// Counts the requests in flight by the moment at which they began, so that one can tell when all that began before some
/// moment have ended. Every step is O(1): requests are counted by *epoch*, and a new one begins where a moment is told.
struct RequestTickets {
    /// The number of the first epoch that is still counted.
    private var first: UInt64 = 0
    private var counts = [0]
    /// No request has begun in the last epoch.
    private var isLastUnused = true

    /// The number is that of the request's epoch.
    mutating func begin() -> UInt64 {
        counts[counts.count - 1] += 1
        isLastUnused = false
        return first + UInt64(counts.count - 1)
    }

    mutating func end(_ epoch: UInt64) {
        counts[Int(epoch - first)] -= 1
        forgetEnded()
    }

    /// Requests that begin from now on have this number or a higher one.
    mutating func now() -> UInt64 {
        if !isLastUnused {
            counts.append(0)
            isLastUnused = true
            forgetEnded()
        }
        return first + UInt64(counts.count - 1)
    }

    /// Whether all requests have ended that began before the moment that `now` told.
    func haveEnded(before moment: UInt64) -> Bool { first >= moment }

    private mutating func forgetEnded() {
        var ended = 0
        while ended < counts.count - 1, counts[ended] == 0 { ended += 1 }
        guard ended > 0 else { return }
        counts.removeFirst(ended)
        first += UInt64(ended)
    }
}

/// Guest clusters whose mapping somebody is about to change.
struct ClusterChanges {
    final class Change {
        fileprivate(set) var clusters: Range<UInt64>
        fileprivate var waiting: [CheckedContinuation<Void, Never>] = []

        fileprivate init(_ clusters: Range<UInt64>) { self.clusters = clusters }

        func waitUntilDone() async {
            await withCheckedContinuation { waiting.append($0) }
        }
    }

    private var active: [Change] = []

    /// The change in flight that touches any of `clusters` and of these begins first.
    func first(overlapping clusters: Range<UInt64>) -> Change? {
        var found: Change?
        for change in active where change.clusters.overlaps(clusters) {
            if let found, found.clusters.lowerBound < change.clusters.lowerBound { continue }
            found = change
        }
        return found
    }

    mutating func begin(_ clusters: Range<UInt64>) -> Change {
        precondition(
            first(overlapping: clusters) == nil, "a cluster's mapping is changed by one task at a time")
        let change = Change(clusters)
        active.append(change)
        return change
    }

    /// The task finds that it will only change the first part; who waits for the rest looks again.
    mutating func shorten(_ change: Change, to clusters: Range<UInt64>) {
        change.clusters = clusters
        wake(change)
    }

    mutating func end(_ change: Change) {
        if let index = active.firstIndex(where: { $0 === change }) {
            active.swapAt(index, active.count - 1)
            active.removeLast()
        }
        wake(change)
    }

    private func wake(_ change: Change) {
        let waiting = change.waiting
        change.waiting = []
        for continuation in waiting { continuation.resume() }
    }
}
