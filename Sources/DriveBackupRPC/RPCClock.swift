/// Nanoseconds since the process first asked: the instants of the state machines.
enum RPCClock {
    private static let origin = ContinuousClock.now

    static var now: Int64 { Int64(0).adding(origin.duration(to: .now)) }

    static func instant(_ nanoseconds: Int64) -> ContinuousClock.Instant {
        origin.advanced(by: .nanoseconds(nanoseconds))
    }
}
