/// How hard the background copy may work beside the guest: deep while the guest is idle, shallow while it is not.
///
/// A guest is busy when it made a request between this step of the copy and one of the last few. One with many on their way
/// waits for its own requests more than for the copy's and can give more, most of all if it changes nothing: then nothing
/// has to be saved. So can one whose writes are long, and what is copied before it comes there needs no saving.
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
        static let manyReads = Allowance(depth: 4, stepLength: 128 << 10, chunkSize: 1 << 20)
        static let manyChanges = Allowance(depth: 3, stepLength: 128 << 10, chunkSize: 256 << 10)
        static let few = Allowance(depth: 2, stepLength: 128 << 10, chunkSize: 256 << 10)
    }

    private(set) var allowance = Allowance.idle

    private var last: LiveDrive.Activity?
    private var quietSteps = GuestPace.patience
    private var stepsWithoutChange = GuestPace.patience

    /// Told at each step how many requests the guest has made so far; of a turn lately there were so many, and whether it writes
    /// long pieces one behind the other.
    mutating func note(_ activity: LiveDrive.Activity, perTurn: UInt64, inLongPieces: Bool) {
        let last = last ?? activity
        self.last = activity
        quietSteps = activity.requests != last.requests ? 0 : min(quietSteps + 1, Self.patience)
        stepsWithoutChange = activity.changes != last.changes ? 0 : min(stepsWithoutChange + 1, Self.patience)
        if quietSteps == Self.patience {
            allowance = .idle
        } else if perTurn < Self.many {
            allowance = inLongPieces && stepsWithoutChange < Self.patience ? .longWrites : .few
        } else {
            allowance = stepsWithoutChange == Self.patience ? .manyReads : .manyChanges
        }
    }
}
