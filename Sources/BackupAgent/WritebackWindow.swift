internal import BlockIO

/// Bounds a target's dirty data: write-back of each chunk is started at once, and waited for when enough
/// newer data is on its way.
struct WritebackWindow: Sendable {
    /// How many bytes may be on their way to the disk.
    let bound: UInt64
    private var ranges: [ByteRange] = []
    private var bytes: UInt64 = 0

    init(bound: UInt64 = 32 << 20) {
        self.bound = bound
    }

    /// Adds the bytes of the file that were just written. Returns the older ranges to wait for, oldest first.
    mutating func add(_ range: ByteRange) -> [ByteRange] {
        ranges.append(range)
        bytes += range.length
        var due: [ByteRange] = []
        while bytes > bound, ranges.count > 1 {
            let oldest = ranges.removeFirst()
            bytes -= oldest.length
            due.append(oldest)
        }
        return due
    }
}
