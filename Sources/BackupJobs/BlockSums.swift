package import BlockIO

/// The digests of a point in time's blocks, as they were read: a sparse file beside the job's staging, with a slot for each
/// block.
///
/// A slot of zeroes stands for a block of zeroes, so that what is known to be zero needs neither to be read nor noted. What
/// is in a slot counts once the record says that the block's cluster is done: it is written before that. So memory does not
/// grow with the drive, and a job that goes on after its agent was killed still has what was read before. To write a slot
/// twice does no harm, it is the same content. Used on the drive's engine.
package final class BlockSums: Sendable {
    package let algorithm: DigestAlgorithm
    /// In bytes.
    package let driveSize: UInt64
    private let file: any BlockDevice
    private let path: String?

    /// Makes an empty file `path`, which must not exist. `engine` is the drive's.
    package static func create(
        at path: String, driveSize: UInt64, algorithm: DigestAlgorithm, on engine: any IOEngine
    ) async throws(BlockError) -> BlockSums {
        try await engine.run { () async throws(BlockError) -> BlockSums in
            let file = try await HostFile.create(path, on: engine)
            do throws(BlockError) {
                try await file.setSize(length(driveSize: driveSize, algorithm: algorithm))
            } catch {
                // The error that led here is the one to tell.
                try? await file.close()
                _ = await engine.blocking { HostFile.unlink(path) }
                throw error
            }
            return BlockSums(on: file, path: path, driveSize: driveSize, algorithm: algorithm)
        }
    }

    /// Opens what a killed agent has left. Throws `.corrupt` for what cannot be of this drive and algorithm.
    package static func open(
        _ path: String, driveSize: UInt64, algorithm: DigestAlgorithm, on engine: any IOEngine
    ) async throws(BlockError) -> BlockSums {
        try await engine.run { () async throws(BlockError) -> BlockSums in
            let file = try await HostFile.open(path, readOnly: false, on: engine)
            guard file.size == length(driveSize: driveSize, algorithm: algorithm) else {
                // Nothing was written to it.
                try? await file.close()
                throw BlockError(
                    .corrupt,
                    "Couldn't use \(path): its \(file.size) bytes are not the digests of a drive of \(driveSize) bytes"
                )
            }
            return BlockSums(on: file, path: path, driveSize: driveSize, algorithm: algorithm)
        }
    }

    /// Digests on any device of `length` bytes, of zeroes or with what a killed agent has left.
    package init(
        on file: any BlockDevice, path: String? = nil, driveSize: UInt64, algorithm: DigestAlgorithm
    ) {
        self.file = file
        self.path = path
        self.driveSize = driveSize
        self.algorithm = algorithm
    }

    /// How long the file is, in bytes.
    package static func length(driveSize: UInt64, algorithm: DigestAlgorithm) -> UInt64 {
        driveSize.dividedRoundingUp(by: ContentDigests.blockSize) * UInt64(algorithm.length)
    }

    /// Closes and removes the file; nothing uses it any more.
    package func remove() async throws(BlockError) {
        let engine = file.engine
        try await engine.run { () async throws(BlockError) in
            try await file.close()
            guard let path else { return }
            let result = await engine.blocking { HostFile.unlink(path) }
            guard result == 0 else { throw BlockError("Couldn't remove \(path)", errno: -result) }
        }
    }

    /// Closes the file, which stays; nothing uses it any more.
    package func close() async throws(BlockError) {
        try await file.engine.run { () async throws(BlockError) in try await file.close() }
    }

    // MARK: Writing

    /// Where the digests of a piece's blocks are made: whole blocks, the drive's last one excepted.
    func digests(of piece: ByteRange) -> PieceDigests { PieceDigests(piece, algorithm) }

    /// Notes the digests of a piece of the point in time, of which `bytes` is the content, after those that are still
    /// missing have been made. When it returns they outlive this process.
    func note(_ digests: PieceDigests, of bytes: IOSlice) async throws(BlockError) {
        let complete: @Sendable () -> Result<Void, BlockError> = {
            var digests = digests
            return Result { () throws(BlockError) in try digests.make(upTo: bytes.count, of: bytes) }
        }
        // What takes long must not hold the thread that guests' requests are served by.
        let made = algorithm.isSlow ? await file.engine.blocking(complete) : complete()
        try made.get()
        try await file.write(digests.place, from: digests.slots.slice)
    }

    fileprivate var size: UInt64 { file.size }

    fileprivate func read(_ range: ByteRange, into slots: IOSlice) async throws(BlockError) {
        try await file.read(range, into: slots)
        // What the disk has lost reads as digests of zeroes.
        if let lost = file.writebackFailure() { throw lost }
    }

    fileprivate func extents(from offset: UInt64) async throws(BlockError) -> [Extent] {
        try await file.extents(in: ByteRange(offset..<file.size))
    }
}

/// Reads the digests of blocks along the drive. What is a hole in the file is not read, the rest in large pieces.
struct BlockSumsReader {
    /// How much is read at once, in bytes, where less is asked for.
    private static let pieceLength: UInt64 = 64 << 10

    private let sums: BlockSums
    /// The digests of a block of zeroes, and of the drive's last one if that is shorter.
    private let zeroes: (whole: [UInt8], last: [UInt8])
    /// What is known of the file from where was last looked.
    private var extents: ArraySlice<Extent> = []
    /// What was read last, and where in the file it stands.
    private var buffer = IOBuffer(count: 0)
    private var piece = ByteRange(offset: 0, length: 0)

    init(_ sums: BlockSums) throws(BlockError) {
        self.sums = sums
        let block = [UInt8](repeating: 0, count: Int(ContentDigests.blockSize))
        let rest = Int(sums.driveSize % ContentDigests.blockSize)
        zeroes = (
            try sums.algorithm.digest(block),
            try sums.algorithm.digest(rest == 0 ? block : Array(block[..<rest]))
        )
    }

    /// The digests of blocks, one behind the other, to be used before the next call; nil where the file has a hole: all the
    /// blocks are zero.
    mutating func digests(of blocks: Range<Int>) async throws(BlockError) -> IOSlice? {
        let length = UInt64(sums.algorithm.length)
        let range = ByteRange(UInt64(blocks.lowerBound) * length..<UInt64(blocks.upperBound) * length)
        if !piece.contains(range) {
            while let first = extents.first, first.range.end <= range.offset { extents.removeFirst() }
            if extents.first.map({ $0.range.offset <= range.offset }) != true {
                extents = try await sums.extents(from: range.offset)[...]
            }
            if let first = extents.first, first.isZero, first.range.contains(range) { return nil }
            try await read(ByteRange(offset: range.offset, length: max(range.length, Self.pieceLength)))
        }
        let start = Int(range.offset - piece.offset)
        return buffer[start..<start + Int(range.length)]
    }

    /// Whether the blocks of which these are the digests are all zero.
    func isZero(_ blocks: Range<Int>, _ digests: IOSlice?) -> Bool {
        guard let digests else { return true }
        let length = sums.algorithm.length
        return blocks.allSatisfy { block in
            let start = (block - blocks.lowerBound) * length
            return digests[start..<start + length].bytes.elementsEqual(zero(block))
        }
    }

    /// The digest of a block of zeroes.
    func zero(_ block: Int) -> [UInt8] {
        UInt64(block + 1) * ContentDigests.blockSize > sums.driveSize ? zeroes.last : zeroes.whole
    }

    private mutating func read(_ range: ByteRange) async throws(BlockError) {
        let range = ByteRange(range.offset..<min(range.end, sums.size))
        let count = Int(range.length)
        // Memory that is used again the system need not clear again.
        if buffer.count < count { buffer = IOBuffer(count: count) }
        piece = ByteRange(offset: 0, length: 0)
        try await sums.read(range, into: buffer[0..<count])
        piece = range
        let length = sums.algorithm.length
        let last = buffer[count - length..<count].bytes
        if range.end == sums.size, ZeroDetection.isZero(last) { last.copyBytes(from: zeroes.last) }
        fillIn(buffer[0..<count].bytes.bindMemory(to: UInt64.self))
    }

    /// Puts the digest of a block of zeroes where a slot of zeroes stands for it.
    private func fillIn(_ slots: UnsafeMutableBufferPointer<UInt64>) {
        let zero = zeroes.whole.withUnsafeBytes { Array($0.bindMemory(to: UInt64.self)) }
        let words = zero.count
        // Extents of very large drives have millions of blocks: no call for each of them.
        for slot in stride(from: 0, to: slots.count, by: words) {
            var any: UInt64 = 0
            for word in slot..<slot + words { any |= slots[word] }
            if any == 0 { for word in 0..<words { slots[slot + word] = zero[word] } }
        }
    }
}
