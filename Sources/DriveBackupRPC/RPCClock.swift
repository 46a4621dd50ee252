internal import Glibc

/// Nanoseconds since the process first asked: the instants of the state machines.
enum RPCClock {
    private static let origin = (instant: ContinuousClock.now, nanoseconds: read())

    static var now: Int64 { read() - origin.nanoseconds }

    static func instant(_ nanoseconds: Int64) -> ContinuousClock.Instant {
        origin.instant.advanced(by: .nanoseconds(nanoseconds))
    }

    /// What `ContinuousClock` reads, without its arithmetic of 128 bits: it is asked several times for each call.
    private static func read() -> Int64 {
        var time = timespec()
        clock_gettime(CLOCK_BOOTTIME, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}
