internal import BlockIO

/// Says when the next chunk of a job may start and how large it may be, so that its speed is smooth.
///
/// Not a bucket that fills and is emptied in one go, but a timetable: each chunk moves the start of the next by the time
/// that its bytes take at the given speed. Chunks shrink to an eighth of a second's worth. Who comes late (the clock
/// is coarse, the disk was slow for a moment) may catch up `slack`, not more: a job that was paused or held up
/// does not make up for it with a burst. All times are durations since the same moment.
struct RateLimiter {
    /// How late a chunk may start without the following ones being moved.
    static let slack = Duration.milliseconds(100)

    private(set) var bytesPerSecond: Int64
    private var nextStart = Duration.zero

    /// 0 bytes a second is no limit.
    init(bytesPerSecond: Int64) {
        self.bytesPerSecond = bytesPerSecond
    }

    /// Changes the speed from now on. What remains to be waited shrinks or grows with it.
    mutating func setSpeed(_ bytesPerSecond: Int64, now: Duration) {
        guard bytesPerSecond != self.bytesPerSecond else { return }
        let owed = max(.zero, nextStart - now).inSeconds * Double(self.bytesPerSecond)
        self.bytesPerSecond = bytesPerSecond
        nextStart = now + (bytesPerSecond > 0 ? .seconds(owed / Double(bytesPerSecond)) : .zero)
    }

    /// How long to wait before the next chunk; zero: it may start.
    func delay(now: Duration) -> Duration {
        bytesPerSecond > 0 ? max(.zero, nextStart - now) : .zero
    }

    /// The largest chunk for this speed in bytes: a multiple of `unit`, at least one, at most `most` beyond that.
    func chunkSize(unit: UInt64, most: UInt64) -> UInt64 {
        let share = bytesPerSecond > 0 ? min(UInt64(bytesPerSecond) / 8, most) : most
        return max(unit, share.roundedDown(toMultipleOf: unit))
    }

    /// Notes that a chunk of `bytes` starts now.
    mutating func spend(_ bytes: UInt64, now: Duration) {
        guard bytesPerSecond > 0 else { return }
        nextStart = max(nextStart, now - Self.slack) + .seconds(Double(bytes) / Double(bytesPerSecond))
    }
}

extension Duration {
    fileprivate var inSeconds: Double {
        Double(components.seconds) + Double(components.attoseconds) / 1e18
    }
}
