/// How hard the background copy may work beside the guest: deep while the guest is idle, shallow while it is not.
///
/// A guest is busy when it made a request between this step of the copy and one of the last few.
struct GuestPace {
    /// How many quiet steps make an idle guest.
    static let patience = 16

    private var lastCount: UInt64?
    private var quietSteps = GuestPace.patience

    /// Told at each step how many requests the guest has made so far.
    mutating func note(_ requestCount: UInt64) {
        if let lastCount, lastCount != requestCount {
            quietSteps = 0
        } else if quietSteps < Self.patience {
            quietSteps += 1
        }
        lastCount = requestCount
    }

    var isGuestBusy: Bool { quietSteps < Self.patience }

    /// How many chunks may be in flight.
    var depth: Int { isGuestBusy ? 2 : .max }

    /// How much is read before the guest has its turn, in bytes.
    var stepLength: UInt64 { isGuestBusy ? 128 << 10 : .max }

    /// The largest chunk in bytes.
    var chunkSize: UInt64 { isGuestBusy ? 256 << 10 : .max }
}
