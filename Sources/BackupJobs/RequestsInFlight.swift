internal import BlockIO

/// The guest's writes, zeroes and discards that have not ended, and which of them belong to *before* the point in time.
///
/// Lives in engine-isolated state. Slots are used again; a request is known by its slot.
struct RequestsInFlight {
    private struct Request {
        var range: ByteRange
        var isBefore: Bool
    }

    private var slots: [Request?] = []
    private var free: [Int] = []
    private(set) var count = 0
    /// How many of before have not ended.
    private(set) var beforeCount = 0

    mutating func begin(_ range: ByteRange) -> Int {
        count += 1
        let request = Request(range: range, isBefore: false)
        if let slot = free.popLast() {
            slots[slot] = request
            return slot
        }
        slots.append(request)
        return slots.count - 1
    }

    /// True when it was one of before.
    mutating func end(_ slot: Int) -> Bool {
        guard let request = slots[slot] else { preconditionFailure("a request ends once") }
        slots[slot] = nil
        free.append(slot)
        count -= 1
        if request.isBefore { beforeCount -= 1 }
        return request.isBefore
    }

    /// The switch: everything in flight belongs to before.
    mutating func markBefore() {
        for slot in slots.indices { slots[slot]?.isBefore = true }
        beforeCount = count
    }

    /// Whether a request of before touches any cluster of `range`.
    func isAnyBefore(in range: ByteRange, clusterSize: UInt64) -> Bool {
        guard beforeCount > 0 else { return false }
        let clusters = range.expanded(toMultipleOf: clusterSize)
        return slots.contains { request in
            request.map { $0.isBefore && $0.range.overlaps(clusters) } ?? false
        }
    }
}

/// Continuations of tasks that wait for something to change and then look again. Lives in engine-isolated state.
struct Waiters {
    private var continuations: [UnsafeContinuation<Void, Never>] = []

    mutating func add(_ continuation: UnsafeContinuation<Void, Never>) { continuations.append(continuation) }

    /// Takes all out, to be resumed outside of the state's access.
    mutating func wake() {
        guard !continuations.isEmpty else { return }
        let all = continuations
        continuations = []
        for one in all { one.resume() }
    }
}
