/// How hard the background copy may work beside the guest: as hard as it can while the guest is idle, and else as such a guest
/// can bear.
///
/// A guest is busy when it made a request between this step of the copy and one of the last few. One with many on their way
/// waits for its own requests more than for the copy's and can give more, most of all if it mostly changes: each block that is
/// copied before the guest comes to it need not be saved. So can one whose writes are long. Where the copy waits for the disk,
/// what it has asked of it is before the guest's requests there, and so it stays small.
struct GuestPace {
    /// How many quiet steps make an idle guest.
    static let patience = 16
    /// How many requests in one turn of the drive's engine are many.
    static let many: UInt64 = 5
    /// How many are so many that the guest is better off if it waits seldom and long.
    static let plenty: UInt64 = 12
    /// How many requests say whether a guest mostly changes, which is two thirds of them: at least half as many, and at most so
    /// many.
    static let memory: UInt64 = 1024

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
        static let many = Allowance(depth: 4, stepLength: 256 << 10, chunkSize: 1 << 20)
        static let manyChanges = Allowance(depth: 6, stepLength: 1 << 20, chunkSize: 2 << 20)
        static let manyOnDisk = Allowance(depth: 3, stepLength: 128 << 10, chunkSize: 256 << 10)
        static let few = Allowance(depth: 3, stepLength: 128 << 10, chunkSize: 256 << 10)
        static let fewOnDisk = Allowance(depth: 2, stepLength: 128 << 10, chunkSize: 256 << 10)
    }

    private(set) var allowance = Allowance.idle

    private var last: LiveDrive.Activity?
    private var quietSteps = GuestPace.patience
    private var stepsWithoutChange = GuestPace.patience
    /// How many requests there were lately, and how many of them changed something.
    private var recent = (requests: UInt64(0), changes: UInt64(0))

    /// Told at each step how many requests the guest has made so far; of a turn lately there were so many, and whether it writes
    /// long pieces one behind the other. The copy `waitsForDisk` where what it reads does not stand in memory.
    mutating func note(
        _ activity: LiveDrive.Activity, perTurn: UInt64, inLongPieces: Bool, waitsForDisk: Bool
    ) {
        let last = last ?? activity
        self.last = activity
        let (requests, changes) = (activity.requests &- last.requests, activity.changes &- last.changes)
        quietSteps = requests > 0 ? 0 : min(quietSteps + 1, Self.patience)
        stepsWithoutChange = changes > 0 ? 0 : min(stepsWithoutChange + 1, Self.patience)
        recent = (recent.requests + requests, recent.changes + changes)
        while recent.requests > Self.memory { recent = (recent.requests / 2, recent.changes / 2) }
        if quietSteps == Self.patience {
            allowance = .idle
        } else if perTurn < Self.many {
            let areLongWrites = inLongPieces && stepsWithoutChange < Self.patience
            allowance = areLongWrites ? .longWrites : waitsForDisk ? .fewOnDisk : .few
        } else if waitsForDisk {
            // A long step holds up nobody's turn, but all that is before the guest's requests on that disk.
            allowance = .manyOnDisk
        } else {
            let areChanges = recent.changes * 3 >= recent.requests * 2
            allowance = areChanges && perTurn >= Self.plenty ? .manyChanges : .many
        }
    }
}
