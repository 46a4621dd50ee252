internal import Synchronization

/// So many bytes that several connections may hold together.
final class ByteBudget: Sendable {
    let capacity: Int
    private let used = Atomic(0)

    init(capacity: Int) { self.capacity = capacity }

    /// Takes `count` bytes, or none if there are not as many left.
    func take(_ count: Int) -> Bool {
        var before = used.load(ordering: .relaxed)
        while count <= capacity - before {
            let (done, now) = used.weakCompareExchange(
                expected: before, desired: before + count, ordering: .relaxed)
            if done { return true }
            before = now
        }
        return false
    }

    func give(_ count: Int) {
        let left = used.subtract(count, ordering: .relaxed).newValue
        precondition(left >= 0, "more bytes were given back than taken")
    }

    /// How many bytes are taken now.
    var usedBytes: Int { used.load(ordering: .relaxed) }
}
