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

    init(clustersPerStretch: Int) {
        self.clustersPerStretch = clustersPerStretch
    }

    /// Notes what staging holds of clusters of a stretch that are done, in bytes.
    mutating func add(_ bytes: UInt64, in stretch: Int) {
        guard bytes > 0 else { return }
        waiting[stretch, default: 0] += bytes
        waitingBytes += bytes
    }

    /// Whether anything of the stretch waits.
    func holds(_ stretch: Int) -> Bool { waiting[stretch] != nil }

    /// Whether too much waits for staging that is bounded by `limit` bytes.
    func isTooMuch(of limit: UInt64) -> Bool {
        waitingBytes > min(Self.mostWaiting, limit / Self.mostOfLimit)
    }

    /// Forgets a stretch, which is given back now.
    mutating func take(_ stretch: Int) { waitingBytes -= waiting.removeValue(forKey: stretch) ?? 0 }

    /// Forgets all stretches, which are given back now.
    mutating func takeAll() -> [Int] {
        defer {
            waiting = [:]
            waitingBytes = 0
        }
        return waiting.keys.sorted()
    }
}
