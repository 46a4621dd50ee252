internal import BlockIO

/// Finds out where a guest writes one piece behind the other, and so what it will overwrite next.
///
/// A few runs of writes are followed at once, as others come in between; requests that were sent together may come in
/// another order. It is a guess, and counts for as much as it has been right: who is guided by it does sooner what is to be
/// done anyway.
struct SequentialWrites {
    /// Lengths in bytes.
    struct Scale: Sendable {
        /// A run that has gone so far is no chance.
        var least: UInt64 = 1 << 20
        /// How far from the end of a run a write may begin that belongs to it.
        var tolerance: UInt64 = 1 << 20
        /// What is overwritten while its copy is under way is saved all the same: copies begin so far before the guest.
        var lead: UInt64 = 4 << 20
        /// How much is copied before the guest at most, from there on.
        var farthest: UInt64 = 64 << 20
        var longPiece: UInt64 = 64 << 10
    }

    /// After so many others a run counts as over.
    private static let patience = 64
    /// How many runs are followed that may become long.
    private static let bound = 4

    private struct Run {
        var end: UInt64
        /// How far it has gone on from where its first write ended.
        var length: UInt64 = 0
        /// That of its last write.
        var piece: UInt64
        /// How many writes have come since that do not belong to it.
        var others = 0

        init(_ range: ByteRange) { (end, piece) = (range.end, range.length) }

        mutating func take(_ range: ByteRange, _ tolerance: UInt64) -> Bool {
            guard range.offset <= end + tolerance, end <= range.offset + tolerance else { return false }
            if range.end > end { length += range.end - end }
            end = max(end, range.end)
            piece = range.length
            others = 0
            return true
        }
    }

    private let scale: Scale
    /// The long run that was written last.
    private var current: Run?
    /// That which was written last is the last one.
    private var runs: [Run] = []

    init(_ scale: Scale) { self.scale = scale }

    /// What is to be copied before the guest comes there, be it beyond the drive's end; nil while it writes here and there. No
    /// more than it has written: a wrong guess costs no more than right ones gave.
    var ahead: ByteRange? {
        current.map { ByteRange(offset: $0.end + scale.lead, length: min($0.length, scale.farthest)) }
    }

    /// Whether it does so in long pieces, in the time of which that of a chunk of the copy is little.
    var isInLongPieces: Bool { current.map { $0.piece >= scale.longPiece } ?? false }

    mutating func note(_ range: ByteRange) {
        if current?.take(range, scale.tolerance) == true { return }
        if let others = current?.others {
            if others == Self.patience { current = nil } else { current?.others = others + 1 }
        }
        if let index = runs.indices.reversed().first(where: { runs[$0].take(range, scale.tolerance) }) {
            let run = runs.remove(at: index)
            if run.length >= scale.least { current = run } else { runs.append(run) }
        } else {
            if runs.count == Self.bound { runs.removeFirst() }
            runs.append(Run(range))
        }
    }
}
