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
    private let file: HostFile

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
            return BlockSums(file, driveSize: driveSize, algorithm: algorithm)
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
            return BlockSums(file, driveSize: driveSize, algorithm: algorithm)
        }
    }

    private init(_ file: HostFile, driveSize: UInt64, algorithm: DigestAlgorithm) {
        self.file = file
        self.driveSize = driveSize
        self.algorithm = algorithm
    }

    private static func length(driveSize: UInt64, algorithm: DigestAlgorithm) -> UInt64 {
        driveSize.dividedRoundingUp(by: ContentDigests.blockSize) * UInt64(algorithm.length)
    }

    /// Closes and removes the file; nothing uses it any more.
    package func remove() async throws(BlockError) {
        let file = file
        try await file.engine.run { () async throws(BlockError) in
            try await file.close()
            let result = await file.engine.blocking { HostFile.unlink(file.name) }
            guard result == 0 else { throw BlockError("Couldn't remove \(file.name)", errno: -result) }
        }
    }

    /// Closes the file, which stays; nothing uses it any more.
    package func close() async throws(BlockError) {
        let file = file
        try await file.engine.run { () async throws(BlockError) in try await file.close() }
    }

    // MARK: Writing

    /// Notes the digests of whole blocks (the drive's last one excepted) of the point in time. When it returns they outlive
    /// this process.
    func note(_ piece: ByteRange, _ bytes: IOSlice) async throws(BlockError) {
        let blockSize = ContentDigests.blockSize
        precondition(piece.offset % blockSize == 0, "digests are of whole blocks")
        let (algorithm, length) = (algorithm, algorithm.length)
        let count = Int(piece.length.dividedRoundingUp(by: blockSize))
        let slots = IOBuffer(count: count * length)
        let compute: @Sendable () -> BlockError? = {
            do throws(BlockError) {
                for block in 0..<count {
                    let start = block * Int(blockSize)
                    let part = bytes[start..<min(start + Int(blockSize), bytes.count)]
                    try algorithm.digest(
                        UnsafeRawBufferPointer(part.bytes),
                        into: slots[block * length..<(block + 1) * length].bytes)
                }
                return nil
            } catch {
                return error
            }
        }
        // What takes long must not hold the thread that guests' requests are served by.
        let failure = algorithm.isSlow ? await file.engine.blocking(compute) : compute()
        if let failure { throw failure }
        let offset = piece.offset / blockSize * UInt64(length)
        try await file.write(ByteRange(offset: offset, length: UInt64(slots.count)), from: slots.slice)
    }

    // MARK: Reading

    /// What stands in a row of slots.
    enum Slots: Sendable {
        /// All of them are zeroes.
        case zeroes
        /// The digests, one behind the other, in the first bytes of the buffer.
        case digests(IOBuffer)
    }

    /// Reads the slots of blocks, at most an extent's. `known` is what was found of the file's holes last time.
    func slots(of blocks: Range<Int>, _ known: inout Extent?) async throws(BlockError) -> Slots {
        let length = UInt64(algorithm.length)
        let range = ByteRange(UInt64(blocks.lowerBound) * length..<UInt64(blocks.upperBound) * length)
        if known.map({ $0.range.offset <= range.offset && range.offset < $0.range.end }) != true {
            known = try await file.extents(in: ByteRange(range.offset..<file.size)).first
        }
        if let known, known.isZero, known.range.contains(range) { return .zeroes }
        let buffer = IOBuffer(count: Int(range.length))
        try await file.read(range, into: buffer.slice)
        return .digests(buffer)
    }
}
