/// Whether the copy comes soon to what guests have overwritten, which it copies first: then what is saved is best kept where it is
/// quickly read, and as little of it as can be. A target that is slow, or hangs, has it stay for long.
struct CopyDistance {
    /// Looks at how much was copied are this part of `soon` apart.
    private static let looks = 16

    /// At the look before: when that was, and how many bytes had been copied.
    private var last: (at: Duration, copied: UInt64)?
    private(set) var isFar = false

    /// Told now and then that so many bytes wait for the copy, and how many it has copied by `now`; what it copies within `soon`, as
    /// quick as it was since the look before, is not far. Until there is something to compare it is near.
    mutating func note(waiting: UInt64, copied: UInt64, now: Duration, soon: Duration) {
        guard let last else { return self.last = (now, copied) }
        let passed = now - last.at
        guard passed >= soon / Self.looks else { return }
        let since = copied > last.copied ? copied - last.copied : 0
        // At what was copied since, in bytes a second; a moment is enough for what takes no time.
        isFar = Double(waiting) * max(passed / .seconds(1), 1e-9) > Double(since) * (soon / .seconds(1))
        self.last = (now, copied)
    }
}
