internal import BlockIO

/// What staging still holds of clusters that are done, by stretches of the drive.
///
/// To give back space holds the file, and a guest's write that has to save something waits meanwhile. So it is given back
/// for many clusters together: when a whole stretch is done, or when much of it is waiting.
struct RetiredClusters {
    /// How much may wait, in bytes, and as a part of all that staging may take.
    private static let mostWaiting: UInt64 = 256 << 20
    private static let mostOfLimit: UInt64 = 16

    let clustersPerStretch: Int
    private var waiting: [Int: UInt64] = [:]
    private var waitingBytes: UInt64 = 0
    /// Stretches that are to be given back, the next one last, and the one that just is.
    private var due: [Int] = []
    private var current: Int?

    init(clustersPerStretch: Int) {
        self.clustersPerStretch = clustersPerStretch
    }

    /// Notes what staging holds of clusters of a stretch that are done, in bytes.
    mutating func add(_ bytes: UInt64, in stretch: Int) {
        guard bytes > 0 else { return }
        waiting[stretch, default: 0] += bytes
        waitingBytes += bytes
    }

    /// The stretches of `stretches` of which anything waits.
    func waiting(in stretches: ClosedRange<Int>) -> [Int] {
        stretches.count < waiting.count
            ? stretches.filter { waiting[$0] != nil } : waiting.keys.filter(stretches.contains).sorted()
    }

    /// Whether staging may still hold something of the stretch.
    func holds(_ stretch: Int) -> Bool {
        waiting[stretch] != nil || current == stretch || due.contains(stretch)
    }

    /// Whether too much waits for staging that is bounded by `limit` bytes.
    func isTooMuch(of limit: UInt64) -> Bool {
        waitingBytes > min(Self.mostWaiting, limit / Self.mostOfLimit)
    }

    /// A stretch is to be given back, whatever it waits for.
    mutating func makeDue(_ stretch: Int) {
        guard let bytes = waiting.removeValue(forKey: stretch) else { return }
        waitingBytes -= bytes
        due.append(stretch)
    }

    mutating func makeAllDue() {
        due += waiting.keys.sorted(by: >)
        waiting = [:]
        waitingBytes = 0
    }

    /// The stretch that is given back just now is to be so later.
    mutating func putBack() {
        if let stretch = current.take() { due.append(stretch) }
    }

    /// The stretch to give back now; nil when none is due.
    mutating func next() -> Int? {
        current = due.popLast()
        return current
    }
}
