/// Decides how long a ring's thread looks for a completion before it sleeps.
///
/// To sleep and to be woken takes longer than a small request. A client with one request on its way sends the next one as
/// soon as it has its answer: whoever still looks then serves it several microseconds earlier. But only if the last wait was
/// short, so that a thread with nothing to do costs nothing, and not for a while after it was in vain: then somebody else may
/// need this very core.
struct Vigil {
    static let longest: UInt64 = 50_000
    /// A wait that was slept through is longer by as much as it takes to be woken.
    static let short: UInt64 = 3 * longest
    /// How often in a row it was in vain, 10 at most; so many waits it is left out then, as a power of two.
    private var failures = 0
    private var leftOut = 0
    private var lastWait = UInt64.max

    /// For how many nanoseconds to look before the wait that begins now; 0 to sleep at once.
    mutating func length() -> UInt64 {
        guard lastWait < Self.short else { return 0 }
        guard leftOut == 0 else {
            leftOut -= 1
            return 0
        }
        return Self.longest
    }

    /// The wait took so many nanoseconds, and a look before it saw something come, or did not; nil without a look.
    mutating func ended(after nanoseconds: UInt64, sawIt: Bool?) {
        lastWait = nanoseconds
        guard let sawIt else { return }
        if sawIt {
            failures = 0
        } else {
            failures = min(failures + 1, 10)
            leftOut = 1 << failures
        }
    }
}
