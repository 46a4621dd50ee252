internal import BlockIO

/// Bounds a target's dirty data: write-back is started behind the chunks, and waited for when enough newer data is on
/// its way.
///
/// Small pieces are gathered first, by the MiB of the file that they lie in: to start write-back for each of them
/// would cut the disk's requests as small.
struct WritebackWindow: Sendable {
    private static let slotBits: UInt64 = 20

    /// How many bytes may be on their way to the disk.
    let bound: UInt64
    private var gathered: [UInt64: ByteRange] = [:]
    private var gatheredBytes: UInt64 = 0
    private var ranges: [ByteRange] = []
    private var bytes: UInt64 = 0

    init(bound: UInt64 = 32 << 20) {
        self.bound = bound
    }

    /// Adds bytes of the file that were just written. Returns ranges whose write-back is to be started now, and older
    /// ones to wait for, oldest first; both may reach over holes between what was written.
    mutating func add(_ range: ByteRange) -> (start: [ByteRange], due: [ByteRange]) {
        let slot = range.offset >> Self.slotBits
        let before = gathered[slot] ?? range
        gathered[slot] = ByteRange(min(before.offset, range.offset)..<max(before.end, range.end))
        gatheredBytes += range.length
        guard gatheredBytes >= 1 << Self.slotBits else { return ([], []) }
        let start = gathered.values.sorted { $0.offset < $1.offset }
        gathered.removeAll(keepingCapacity: true)
        gatheredBytes = 0
        ranges += start
        bytes += start.reduce(0) { $0 + $1.length }
        var count = 0
        while bytes > bound, count < ranges.count - 1 {
            bytes -= ranges[count].length
            count += 1
        }
        defer { ranges.removeFirst(count) }
        return (start, Array(ranges.prefix(count)))
    }
}
