/// A number of places for tasks of one engine, first come, first served; lives in engine-isolated state. Whoever needs
/// memory that nobody else counts takes a place first.
struct EngineSlots {
    private var free: Int
    private let count: Int
    private var waiting: [CheckedContinuation<Void, Never>] = []

    init(_ count: Int) {
        precondition(count > 0, "somebody can have a place")
        self.count = count
        free = count
    }

    /// True when the caller has a place now; otherwise it is to `wait`.
    mutating func tryAcquire() -> Bool {
        if free == 0 { return false }
        free -= 1
        return true
    }

    /// When `continuation` is resumed, its task has a place.
    mutating func wait(_ continuation: CheckedContinuation<Void, Never>) { waiting.append(continuation) }

    mutating func release() {
        precondition(free < count, "a place is given back by who has it")
        if waiting.isEmpty { free += 1 } else { waiting.removeFirst().resume() }
    }
}
