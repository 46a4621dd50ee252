internal import Synchronization

extension Transmission {
    /// How far a client has come, for the watchdog, which looks from another thread.
    final class Progress: Sendable {
        private let moves = Atomic(0)
        /// Somebody waits for the client to take or to give bytes.
        private let waits = Atomic(0)

        /// The client sends nothing more.
        private let ended = Atomic(false)
        private let onHangUp: @Sendable () -> Void

        init(onHangUp: @escaping @Sendable () -> Void) { self.onHangUp = onHangUp }

        func moved() { moves.wrappingAdd(1, ordering: .relaxed) }
        /// That it begins is a move: the client has had no time yet, whenever the watchdog looked last.
        func beginWait() {
            moved()
            waits.wrappingAdd(1, ordering: .relaxed)
        }
        func endWait() { waits.wrappingSubtract(1, ordering: .relaxed) }

        /// The payload that is being received.
        private let payload = Mutex<(bytes: Int, began: ContinuousClock.Instant)?>(nil)

        func beginPayload(_ bytes: Int, at now: ContinuousClock.Instant = .now) {
            payload.withLock { $0 = (bytes, now) }
            beginWait()
        }

        func endPayload() {
            endWait()
            payload.withLock { $0 = nil }
        }

        /// A payload has been on its way for longer than it may, when others wait: however steadily it trickles.
        func isLate(at now: ContinuousClock.Instant, _ limits: NBDLimits) -> Bool {
            guard let (bytes, began) = payload.withLock({ $0 }) else { return false }
            let microseconds = bytes * 1_000_000 / max(1, limits.payloadBytesPerSecond)
            return now - began > limits.stall + .microseconds(microseconds)
        }

        func hangUp() {
            ended.store(true, ordering: .relaxed)
            onHangUp()
        }

        var hasHungUp: Bool { ended.load(ordering: .relaxed) }
        var count: Int { moves.load(ordering: .relaxed) }
        var isWaiting: Bool { waits.load(ordering: .relaxed) > 0 }
    }
}
