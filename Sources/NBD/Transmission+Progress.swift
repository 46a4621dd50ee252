internal import Synchronization

extension Transmission {
    /// How far a client has come, for the watchdog, which looks from another thread.
    final class Progress: Sendable {
        /// One of the two directions: who gives bytes in one may hold those of the other back.
        final class Way: Sendable {
            private let moves = Atomic(0)
            /// What is on its way now.
            private let transfer = Mutex<(bytes: Int, began: ContinuousClock.Instant)?>(nil)

            /// The client has taken, or given, some bytes.
            func moved() { moves.wrappingAdd(1, ordering: .relaxed) }

            /// It is waited for so many bytes to pass. That this begins is a move: the client has had no time yet, whenever
            /// the watchdog looked last.
            func begin(_ bytes: Int, at now: ContinuousClock.Instant = .now) {
                moved()
                transfer.withLock { $0 = (bytes, now) }
            }

            func end() { transfer.withLock { $0 = nil } }

            var count: Int { moves.load(ordering: .relaxed) }
            var isWaiting: Bool { transfer.withLock { $0 != nil } }

            /// Bytes have been on their way for longer than they may, when others wait: than `stall` and what they take at
            /// this rate, however steadily they trickle.
            func isLate(
                at now: ContinuousClock.Instant, _ stall: Duration, _ bytesPerSecond: Int
            ) -> Bool {
                guard let (bytes, began) = transfer.withLock({ $0 }) else { return false }
                return now - began > stall + .microseconds(bytes * 1_000_000 / max(1, bytesPerSecond))
            }
        }

        /// Payloads that the client has announced.
        let incoming = Way()
        /// Replies that the client is to take.
        let outgoing = Way()

        /// The client sends nothing more.
        private let ended = Atomic(false)
        private let onHangUp: @Sendable () -> Void

        init(onHangUp: @escaping @Sendable () -> Void) { self.onHangUp = onHangUp }

        func hangUp() {
            ended.store(true, ordering: .relaxed)
            onHangUp()
        }

        var hasHungUp: Bool { ended.load(ordering: .relaxed) }
    }
}
