internal import Glibc

/// Durations and instants as people read them.
enum TimeText {
    /// A duration in words: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 7 min`, `3 d 4 h`.
    static func words(_ duration: Duration) -> String {
        let seconds = duration.components.seconds
        let tenths = duration.components.attoseconds / 100_000_000_000_000_000
        switch seconds {
        case ..<0: return "0.0 s"
        case ..<10: return "\(seconds).\(tenths) s"
        case ..<60: return "\(seconds) s"
        case ..<3600: return "\(seconds / 60) min \(seconds % 60) s"
        case ..<86400: return "\(seconds / 3600) h \(seconds / 60 % 60) min"
        default: return "\(seconds / 86400) d \(seconds / 3600 % 24) h"
        }
    }

    /// A duration as a clock shows it, at most 8 characters wide: `0:07`, `12:30`, `3:05:00`, `4d 03h`, `>999d`.
    static func clock(_ seconds: Int64) -> String {
        func two(_ number: Int64) -> String { number < 10 ? "0\(number)" : "\(number)" }
        switch seconds {
        case ..<0: return "0:00"
        case ..<3600: return "\(seconds / 60):\(two(seconds % 60))"
        case ..<86400: return "\(seconds / 3600):\(two(seconds / 60 % 60)):\(two(seconds % 60))"
        case ..<(1000 * 86400): return "\(seconds / 86400)d \(two(seconds / 3600 % 24))h"
        default: return ">999d"
        }
    }

    /// The instant in the local time zone: `2026-03-01 12:30:45`; `-` for 0, "not known".
    static func instant(nanoseconds: Int64) -> String {
        guard nanoseconds > 0 else { return "-" }
        var seconds = time_t(nanoseconds / 1_000_000_000)
        var parts = tm()
        guard localtime_r(&seconds, &parts) != nil else { return "-" }
        return withUnsafeTemporaryAllocation(of: CChar.self, capacity: 64) { buffer in
            guard let start = buffer.baseAddress,
                strftime(start, buffer.count, "%Y-%m-%d %H:%M:%S", &parts) > 0
            else { return "-" }
            return String(cString: start)
        }
    }

    /// From one instant to a later one, both in nanoseconds since 1970.
    static func span(from start: Int64, to end: Int64) -> Duration {
        let (difference, overflow) = end.subtractingReportingOverflow(start)
        return .nanoseconds(overflow ? 0 : max(0, difference))
    }
}
