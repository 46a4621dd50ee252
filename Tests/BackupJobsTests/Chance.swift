internal import Glibc
internal import Synchronization

/// Numbers that look random and follow from a seed (splitmix64).
struct Chance: Sendable, RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var word = state
        word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
        word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
        return word ^ (word >> 31)
    }

    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(max(bound, 1))) }
    mutating func below(_ bound: UInt64) -> UInt64 { next() % max(bound, 1) }
    mutating func oneIn(_ count: Int) -> Bool { below(count) == 0 }

    mutating func pick<Element>(_ elements: [Element]) -> Element { elements[below(elements.count)] }

    /// The seed to begin with: the environment's, or a new one.
    static func seed() -> UInt64 {
        if let text = getenv("DRIVE_BACKUP_SEED"), let seed = UInt64(String(cString: text)) { return seed }
        return .random(in: 0..<1_000_000_000)
    }
}

/// Something that has happened.
final class Flag: Sendable {
    private let state = Mutex(false)
    var isSet: Bool { state.withLock { $0 } }
    func set() { state.withLock { $0 = true } }
}
