internal import BlockIO
internal import Glibc

/// The drive as it was at a job's point in time, for reading while the guest goes on.
///
/// A read takes the drive as it is, **then** looks where each block's old content is: still on the drive, in staging, in
/// the target, or in the backing file where the job does not need it. What the guest wrote before or during the read was
/// saved before it was written, so the look afterwards finds it. The cluster is pinned in the step of the look: its
/// staging is not given back before it was read.
final class PointInTimeView: BlockDevice {
    private enum Place: Hashable { case drive, staging, target, base }

    private static let pieceSize: UInt64 = 1 << 20

    let point: PointInTime
    let target: any BackupTarget
    let base: (any BlockDevice)?
    let name: String

    init(_ point: PointInTime, target: any BackupTarget, base: (any BlockDevice)?) {
        self.point = point
        self.target = target
        self.base = base
        name = "\(point.drive.name) (point in time)"
    }

    var engine: any IOEngine { point.drive.engine }
    var size: UInt64 { point.drive.size }
    let isReadOnly = true
    var limits: BlockLimits { BlockLimits(optimalGranularity: JobRecord.blockSize) }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "read")
        var done: UInt64 = 0
        while done < range.length {
            let rest = range.dropFirst(done)
            // Pieces end at blocks, so that each is looked at once.
            let end = min(
                rest.end, (rest.offset + Self.pieceSize).roundedDown(toMultipleOf: JobRecord.blockSize))
            let piece = ByteRange(rest.offset..<end)
            try await readPiece(piece, into: buffer[Int(done)..<Int(done + piece.length)])
            done += piece.length
        }
    }

    // MARK: What never changes

    func write(_ range: ByteRange, from _: IOSlice) async throws(BlockError) { throw readOnly(range) }

    func writeZeroes(_ range: ByteRange, mayUnmap _: Bool) async throws(BlockError) {
        throw readOnly(range)
    }

    func discard(_ range: ByteRange) async throws(BlockError) { throw readOnly(range) }

    func flush() async throws(BlockError) {}

    /// The view ends with its job; there is nothing of its own to close.
    func close() async throws(BlockError) {}

    private func readOnly(_ range: ByteRange) -> BlockError {
        BlockError(
            "Couldn't change \(range) of \(name): it is the drive as it was", errno: EPERM, range: range)
    }

    // MARK: One piece

    private func readPiece(_ piece: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try checkAlive(piece)
        let clusters = point.clusters(of: piece)
        var unreadable: BlockError?
        // What is done stays done: then nothing of the drive is asked for.
        if !clusters.allSatisfy({ point.record.bits.done.isSet($0) }) {
            point.beginUse()
            do throws(BlockError) { try await point.drive.device.read(piece, into: buffer) } catch {
                unreadable = error
            }
            point.endUse()
            try checkAlive(piece)
        }
        let parts = try look(at: piece, unreadable)
        let pinned = clusters.filter { cluster in
            parts.contains { $0.place == .staging && point.clusters(of: $0.range).contains(cluster) }
        }
        for cluster in pinned { point.pin(cluster) }
        point.beginUse()
        var failure = await read(parts.filter { $0.place == .staging }, of: piece, into: buffer)
        for cluster in pinned { await point.unpin(cluster) }
        point.endUse()
        // A target may hang: nothing of the job is held while it is read.
        if failure == nil {
            failure = await read(parts.filter { $0.place != .staging }, of: piece, into: buffer)
        }
        if let failure { throw failure }
        // The target may have been given up, or closed, under the read.
        if parts.contains(where: { $0.place == .target }) { try checkAlive(piece) }
    }

    /// Where the parts of `piece` are now that do not come from the drive, in order.
    private func look(
        at piece: ByteRange, _ unreadable: BlockError?
    ) throws(BlockError) -> [(place: Place, range: ByteRange)] {
        let bits = point.record.bits
        var parts: [(place: Place, range: ByteRange)] = []
        for block in point.blocks(of: piece) {
            let cluster = block / point.blocksPerCluster
            let range = point.bytes(ofBlocks: block..<block + 1).clamped(to: piece)
            let place: Place
            if bits.missing.isSet(block) {
                throw BlockError(
                    "Couldn't read \(range) of \(name): it is missing in the backup, since the drive could not be read "
                        + "there, or the target not be written", errno: EIO, range: range)
            } else if bits.done.isSet(cluster) {
                place = .target
            } else if bits.notNeeded.isSet(cluster), base != nil {
                place = .base
            } else if bits.saved.isSet(block) {
                place = .staging
            } else if let unreadable {
                throw unreadable
            } else {
                continue
            }
            if let last = parts.last, last.place == place, last.range.end == range.offset {
                parts[parts.count - 1].range = ByteRange(last.range.offset..<range.end)
            } else {
                parts.append((place, range))
            }
        }
        return parts
    }

    private func read(
        _ parts: [(place: Place, range: ByteRange)], of piece: ByteRange, into buffer: IOSlice
    ) async -> BlockError? {
        for (place, range) in parts {
            let slice = buffer[Int(range.offset - piece.offset)..<Int(range.end - piece.offset)]
            do throws(BlockError) {
                switch place {
                case .staging: try await point.readSaved(range, into: slice)
                case .target: try await target.read(range, into: slice)
                case .base: try await readBase(range, into: slice)
                case .drive: break
                }
            } catch {
                return error
            }
        }
        return nil
    }

    /// A backing file may be shorter than what lies on it.
    private func readBase(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        guard let base else { return }
        let present = range.clamped(to: base.range)
        let count = present.offset == range.offset ? Int(present.length) : 0
        if count > 0 { try await base.read(present, into: buffer[0..<count]) }
        buffer[count..<buffer.count].bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    private func checkAlive(_ range: ByteRange) throws(BlockError) {
        if let failure = point.state.value.failure {
            throw BlockError(
                .inputOutput,
                "Couldn't read \(range) of \(name): the point in time is lost (\(failure.error.message))",
                errno: EIO, range: range)
        }
        guard !point.state.value.isOver, !point.record.isCancelled, !point.record.isBroken else {
            throw BlockError(.cancelled, "Couldn't read \(range) of \(name): its job has ended", range: range)
        }
    }

    /// What the drive says, for what is still there; everything else counts as data.
    func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        try check(range, to: "look at")
        try checkAlive(range)
        let found = try await point.drive.device.extents(in: range)
        try checkAlive(range)
        var extents: [Extent] = []
        func add(_ range: ByteRange, isZero: Bool) {
            guard !range.isEmpty else { return }
            if let last = extents.last, last.isZero == isZero {
                extents[extents.count - 1].range = ByteRange(last.range.offset..<range.end)
            } else {
                extents.append(Extent(range, isZero: isZero, isAllocated: true))
            }
        }
        for extent in found {
            guard extents.count < 1024 else { break }
            guard extent.isZero else {
                add(extent.range, isZero: false)
                continue
            }
            var rest = extent.range
            while !rest.isEmpty, extents.count < 1024 {
                let (isZero, length) = runOfZeroes(rest)
                add(rest.prefix(length), isZero: isZero)
                rest = rest.dropFirst(length)
            }
        }
        return extents
    }

    /// Whether the start of `range`, zero on the drive now, was zero then, as far as that is known without reading.
    private func runOfZeroes(_ range: ByteRange) -> (isZero: Bool, length: UInt64) {
        let bits = point.record.bits
        let (blocks, clusters) = (point.blocks(of: range), point.clusters(of: range))
        func length(toBlock block: Int?) -> UInt64 {
            block.map { min(range.end, UInt64($0) * JobRecord.blockSize) - range.offset } ?? range.length
        }
        let first = clusters.lowerBound
        if bits.done.isSet(first) {
            let end = bits.done.first(in: clusters, where: false)
            return (false, length(toBlock: end.map { $0 * point.blocksPerCluster }))
        }
        if bits.notNeeded.isSet(first) {
            let end = bits.notNeeded.first(in: clusters, where: false)
            return (false, length(toBlock: end.map { $0 * point.blocksPerCluster }))
        }
        var end = point.firstTouched(range)
        if end == blocks.lowerBound {
            let section = bits.saved.isSet(blocks.lowerBound) ? bits.saved : bits.missing
            return (false, length(toBlock: section.first(in: blocks, where: false)))
        }
        for changed in [bits.done.first(in: clusters), bits.notNeeded.first(in: clusters)] {
            if let changed { end = min(end ?? .max, changed * point.blocksPerCluster) }
        }
        return (true, length(toBlock: end))
    }
}
