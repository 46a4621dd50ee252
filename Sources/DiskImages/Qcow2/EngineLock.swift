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

/// Numbers the requests in flight, so that one can tell when all that began before some moment have ended.
struct RequestTickets {
    private var next: UInt64 = 0
    private var active: [UInt64] = []

    mutating func begin() -> UInt64 {
        defer { next += 1 }
        active.append(next)
        return next
    }

    mutating func end(_ ticket: UInt64) {
        if let index = active.firstIndex(of: ticket) { active.remove(at: index) }
    }

    /// Requests that begin from now on have this number or a higher one.
    var now: UInt64 { next }

    /// Whether all requests have ended that began before the moment that `now` told.
    func haveEnded(before moment: UInt64) -> Bool { active.first.map { $0 >= moment } ?? true }
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
        active.filter { $0.clusters.overlaps(clusters) }.min {
            $0.clusters.lowerBound < $1.clusters.lowerBound
        }
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
        active.removeAll { $0 === change }
        wake(change)
    }

    private func wake(_ change: Change) {
        let waiting = change.waiting
        change.waiting = []
        for continuation in waiting { continuation.resume() }
    }
}
