/// How hard the background copy may work beside the guest: deep while the guest is idle, shallow while it is not.
///
/// A guest is busy when it made a request between this step of the copy and one of the last few. One with many on their way
/// waits for its own requests more than for the copy's and can give more, most of all if it mostly changes: each block that is
/// copied before the guest comes to it need not be saved, and such a guest is better off if it waits seldom and long than
/// often. So can one whose writes are long.
struct GuestPace {
    /// How many quiet steps make an idle guest.
    static let patience = 16
    /// How many requests in one turn of the drive's engine are many.
    static let many: UInt64 = 5

    /// How much the copy may do at once.
    struct Allowance: Equatable {
        /// How many chunks may be in flight.
        var depth: Int
        /// How much is read before the guest has its turn, in bytes.
        var stepLength: UInt64
        /// The largest chunk in bytes.
        var chunkSize: UInt64

        static let idle = Allowance(depth: .max, stepLength: .max, chunkSize: .max)
        static let longWrites = Allowance(depth: 6, stepLength: 256 << 10, chunkSize: 1 << 20)
        static let manyReads = Allowance(depth: 4, stepLength: 256 << 10, chunkSize: 1 << 20)
        static let manyChanges = Allowance(depth: 6, stepLength: 1 << 20, chunkSize: 2 << 20)
        static let few = Allowance(depth: 2, stepLength: 128 << 10, chunkSize: 256 << 10)
    }

    private(set) var allowance = Allowance.idle

    private var last: LiveDrive.Activity?
    private var quietSteps = GuestPace.patience
    /// So many steps, one behind the other, in which less than half of the requests changed something.
    private var stepsOfReads = GuestPace.patience

    /// Told at each step how many requests the guest has made so far; of a turn lately there were so many, and whether it writes
    /// long pieces one behind the other.
    mutating func note(_ activity: LiveDrive.Activity, perTurn: UInt64, inLongPieces: Bool) {
        let last = last ?? activity
        self.last = activity
        let (requests, changes) = (activity.requests &- last.requests, activity.changes &- last.changes)
        quietSteps = requests > 0 ? 0 : min(quietSteps + 1, Self.patience)
        let isOfReads = changes < (requests + 1) / 2 || requests == 0
        stepsOfReads = isOfReads ? min(stepsOfReads + 1, Self.patience) : 0
        if quietSteps == Self.patience {
            allowance = .idle
        } else if perTurn < Self.many {
            allowance = inLongPieces && stepsOfReads < Self.patience ? .longWrites : .few
        } else {
            allowance = stepsOfReads == Self.patience ? .manyReads : .manyChanges
        }
    }
}
