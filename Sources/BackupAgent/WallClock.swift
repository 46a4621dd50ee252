internal import Glibc

/// The time of day as the wire has it.
package enum WallClock {
    /// Nanoseconds since 1970-01-01 UTC.
    package static func now() -> Int64 {
        var time = timeval()
        gettimeofday(&time, nil)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_usec) * 1000
    }
}
