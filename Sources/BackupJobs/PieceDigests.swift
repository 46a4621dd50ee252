internal import BlockIO

/// The digests of a piece's blocks, made from the front while the piece is read: then its bytes are in the processor's cache,
/// and memory is not read a second time. A copy shares the digests themselves.
struct PieceDigests: Sendable {
    /// Where they stand in the file of digests.
    let place: ByteRange
    let slots: IOBuffer
    private let algorithm: DigestAlgorithm
    /// Of how many bytes of the piece there are digests.
    private var made = 0

    init(_ piece: ByteRange, _ algorithm: DigestAlgorithm) {
        precondition(piece.offset % ContentDigests.blockSize == 0, "digests are of whole blocks")
        let length = UInt64(algorithm.length)
        let count = piece.length.dividedRoundingUp(by: ContentDigests.blockSize)
        place = ByteRange(offset: piece.offset / ContentDigests.blockSize * length, length: count * length)
        slots = IOBuffer(count: Int(count * length))
        self.algorithm = algorithm
    }

    /// Makes those of the blocks up to byte `end`, which is the end of one, as far as they are missing, if that does not take
    /// long.
    mutating func makeQuickly(upTo end: Int, of bytes: IOSlice) {
        guard !algorithm.isSlow else { return }
        // An error is met again by who makes the rest.
        try? make(upTo: end, of: bytes)
    }

    /// Makes those of the blocks up to byte `end`, which is the end of one, as far as they are missing; `bytes` is the piece.
    mutating func make(upTo end: Int, of bytes: IOSlice) throws(BlockError) {
        let (blockSize, length) = (Int(ContentDigests.blockSize), algorithm.length)
        while made < end {
            let next = min(made + blockSize, end)
            let slot = made / blockSize * length
            try algorithm.digest(
                UnsafeRawBufferPointer(bytes[made..<next].bytes), into: slots[slot..<slot + length].bytes)
            made = next
        }
    }

    /// The piece has changed: all are to be made again.
    mutating func forget() { made = 0 }
}
