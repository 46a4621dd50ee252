internal import BlockIO

/// Finds out where a guest writes one piece behind the other, and so what it will overwrite next.
///
/// A few runs of writes are followed at once, as others come in between; requests that were sent together may come in
/// another order. It is a guess: who is guided by it only does sooner what is to be done anyway.
struct SequentialWrites {
    /// Lengths in bytes.
    struct Scale: Sendable {
        /// So much in a row is no chance.
        var least: UInt64 = 1 << 20
        /// How far from the end of a run a write may begin that belongs to it.
        var tolerance: UInt64 = 1 << 20
        /// What is overwritten while its copy is under way is saved all the same: copies begin so far before the guest.
        var lead: UInt64 = 4 << 20
        /// How much is copied before the guest, from there on.
        var farthest: UInt64 = 64 << 20
        var longPiece: UInt64 = 64 << 10
    }

    /// After so many others a run counts as over.
    private static let patience = 64
    /// How many runs are followed that may become long.
    private static let bound = 4

    private struct Run {
        var end: UInt64
        var length: UInt64
        /// That of its last write.
        var piece: UInt64
        /// How many writes have come since that do not belong to it.
        var others = 0

        init(_ range: ByteRange) { (end, length, piece) = (range.end, range.length, range.length) }

        mutating func take(_ range: ByteRange, _ tolerance: UInt64) -> Bool {
            guard range.offset <= end + tolerance, end <= range.offset + tolerance else { return false }
            end = max(end, range.end)
            length += range.length
            piece = range.length
            others = 0
            return true
        }
    }

    private let scale: Scale
    /// The long run that was written last.
    private var current: Run?
    private var runs: [Run] = []
    private var oldest = 0

    init(_ scale: Scale) { self.scale = scale }

    /// What is to be copied before the guest comes there, be it beyond the drive's end; nil while it writes here and there.
    var ahead: ByteRange? {
        current.map { ByteRange(offset: $0.end + scale.lead, length: scale.farthest) }
    }

    /// Whether it does so in long pieces, in the time of which that of a chunk of the copy is little.
    var isInLongPieces: Bool { current.map { $0.piece >= scale.longPiece } ?? false }

    mutating func note(_ range: ByteRange) {
        if current?.take(range, scale.tolerance) == true { return }
        if let others = current?.others {
            if others == Self.patience { current = nil } else { current?.others = others + 1 }
        }
        for index in runs.indices where runs[index].take(range, scale.tolerance) {
            if runs[index].length >= scale.least { current = runs.remove(at: index) }
            return
        }
        let run = Run(range)
        if run.length >= scale.least {
            current = run
        } else if runs.count < Self.bound {
            runs.append(run)
        } else {
            runs[oldest] = run
            oldest = (oldest + 1) % Self.bound
        }
    }
}
