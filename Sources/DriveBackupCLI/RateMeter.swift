/// How fast a job has been lately.
///
/// The rate is taken over the last ten seconds, so that it neither jumps with each chunk nor remembers what was an hour
/// ago. Time is whatever clock the caller has, from any start.
struct RateMeter {
    private struct Sample {
        var time: Duration
        var bytes: Int64
    }

    private static let window = Duration.seconds(10)
    /// Samples nearer to each other than this are merged: the meter holds some forty, however often it is asked.
    private static let spacing = Duration.milliseconds(250)

    private var samples: [Sample] = []

    /// Takes note that `bytes` were done at `time`.
    mutating func note(_ bytes: Int64, at time: Duration) {
        if let last = samples.last, bytes < last.bytes { samples = [] }
        if samples.count >= 2, time - samples[samples.count - 2].time < Self.spacing { samples.removeLast() }
        samples.append(Sample(time: time, bytes: bytes))
        while samples.count > 2, time - samples[1].time >= Self.window { samples.removeFirst() }
    }

    /// Forgets the past, after a pause for example.
    mutating func restart() { samples = [] }

    /// Bytes a second up to `time`; nil while there is too little to tell from.
    func rate(at time: Duration) -> Int64? {
        guard let first = samples.first, let last = samples.last else { return nil }
        let nanoseconds = (time - first.time).inNanoseconds
        guard nanoseconds >= 400_000_000 else { return nil }
        return Int64(saturating: (Double(last.bytes) - Double(first.bytes)) * 1e9 / Double(nanoseconds))
    }
}

extension Int64 {
    /// The whole number nearest to zero from `value`, or the greatest or least there is: an agent may say anything.
    init(saturating value: Double) {
        self = Int64(exactly: value.rounded(.towardZero)) ?? (value > 0 ? .max : value < 0 ? .min : 0)
    }
}

extension Duration {
    /// The duration in nanoseconds; `Int64.max` for what is longer than 292 years.
    var inNanoseconds: Int64 {
        let (seconds, attoseconds) = components
        let (whole, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        guard !overflow else { return seconds < 0 ? .min : .max }
        let (sum, sumOverflow) = whole.addingReportingOverflow(attoseconds / 1_000_000_000)
        return sumOverflow ? .max : sum
    }
}
