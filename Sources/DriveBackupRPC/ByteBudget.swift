internal import Synchronization

/// So many bytes that several connections may hold together.
final class ByteBudget: Sendable {
    let capacity: Int
    private let used = Mutex(0)

    init(capacity: Int) { self.capacity = capacity }

    /// Takes `count` bytes, or none if there are not as many left.
    func take(_ count: Int) -> Bool {
        used.withLock { used in
            guard count <= capacity - used else { return false }
            used += count
            return true
        }
    }

    func give(_ count: Int) {
        used.withLock { used in
            used -= count
            precondition(used >= 0, "more bytes were given back than taken")
        }
    }

    /// How many bytes are taken now.
    var usedBytes: Int { used.withLock { $0 } }
}
