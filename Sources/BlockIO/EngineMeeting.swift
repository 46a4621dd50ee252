internal import Glibc
internal import Synchronization

/// An instant at which several engines do nothing else.
///
/// Each engine's thread stops at the meeting until all have come; what the last one sees then is one instant for all: no
/// code of any of them runs between the first arrival and it. One that does not come in time lets the others go, and
/// nothing has happened.
///
/// Meetings of several engines are held one after another: of two at once each could stop an engine that the other one
/// waits for.
package enum EngineMeeting {
    private static let last = Mutex<Task<Bool, Never>?>(nil)

    /// Holds all `engines` at once, has each run `step` with its position, and lets them go. False, with no `step` run,
    /// when they have not met within `limit`, counted from when it is their turn: some engine's thread was held up that long.
    package static func hold(
        _ engines: [any IOEngine], within limit: Duration, _ step: @escaping @Sendable (Int) -> Void
    ) async -> Bool {
        guard engines.count > 1 else { return await meet(engines, limit, step) }
        let meeting = last.withLock { last in
            let meeting = Task { [previous = last] in
                _ = await previous?.value
                return await meet(engines, limit, step)
            }
            last = meeting
            return meeting
        }
        return await meeting.value
    }

    private static func meet(
        _ engines: [any IOEngine], _ limit: Duration, _ step: @escaping @Sendable (Int) -> Void
    ) async -> Bool {
        let meeting = MeetingPlace(expected: engines.count, limit: limit)
        return await withTaskGroup(of: Bool.self) { group in
            for (position, engine) in engines.enumerated() {
                group.addTask {
                    await engine.run { () async -> Bool in
                        guard meeting.arrive() else { return false }
                        step(position)
                        return true
                    }
                }
            }
            var haveMet = true
            for await hasMet in group { haveMet = haveMet && hasMet }
            return haveMet
        }
    }
}

/// Where threads wait for each other, once.
private final class MeetingPlace: Sendable {
    private struct State {
        var arrived = 0
        /// nil: still waiting.
        var outcome: Bool?
    }

    private let expected: Int
    private let limit: Duration
    private let state = Mutex(State())
    private let gate = Semaphore()

    init(expected: Int, limit: Duration) {
        self.expected = expected
        self.limit = limit
    }

    /// Blocks until all have arrived: true; or the limit has passed, or had for somebody else: false.
    func arrive() -> Bool {
        let outcome = state.withLock { state in
            if state.outcome == nil {
                state.arrived += 1
                if state.arrived == expected { state.outcome = true }
            }
            return state.outcome
        }
        if outcome == true { letGo() }
        if let outcome { return outcome }
        let isInTime = gate.wait(atMost: limit)
        let decided = state.withLock { state in
            if state.outcome == nil && !isInTime { state.outcome = false }
            return state.outcome ?? false
        }
        if !decided { letGo() }
        return decided
    }

    private func letGo() { for _ in 0..<expected { gate.signal() } }
}
