internal import CBlockIO
internal import Glibc
internal import Synchronization

extension HostFile {
    /// How many extents one call describes at most: a file of tiny pieces must not hold a thread for long.
    private static let maximumExtents = 256

    /// The file's data and holes, as its file system knows them; block devices are all data.
    package func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        precondition(!range.isEmpty, "extents are asked for in a range with bytes")
        try check(range, to: "look for data in")
        guard !isBlockDevice else { return [Extent(range, isZero: false, isAllocated: true)] }
        let (descriptor, name) = (descriptor, name)
        let found: Result<[Extent], BlockError> = await engine.blocking {
            Result { () throws(BlockError) in try Self.findExtents(descriptor, range, name) }
        }
        return try found.get()
    }

    private static func findExtents(
        _ descriptor: Int32, _ range: ByteRange, _ name: String
    ) throws(BlockError) -> [Extent] {
        var extents: [Extent] = []
        var position = range.offset
        func add(upTo end: UInt64, isZero: Bool) {
            let end = min(end, range.end)
            guard end > position else { return }
            extents.append(Extent(ByteRange(position..<end), isZero: isZero, isAllocated: true))
            position = end
        }
        while position < range.end && extents.count < maximumExtents {
            let data = cblockio_seek_data(descriptor, position)
            switch data {
            case Int64(-ENXIO):
                // No data behind `position`: a hole up to the end, if the file still reaches that far.
                try checkLength(descriptor, atLeast: range.end, range, name)
                add(upTo: range.end, isZero: true)
                continue
            case Int64(-EINVAL), Int64(-EOPNOTSUPP), Int64(-ENOSYS):
                add(upTo: range.end, isZero: false)
                continue
            case ..<0: throw seekFailure(range, name, data)
            default: add(upTo: UInt64(data), isZero: true)
            }
            guard position < range.end else { break }
            let hole = cblockio_seek_hole(descriptor, position)
            guard hole >= 0 else {
                // ENXIO: the file was cut off between the two calls. Reading will say so.
                if hole == Int64(-ENXIO) { add(upTo: range.end, isZero: false) }
                if hole == Int64(-ENXIO) { continue }
                throw seekFailure(range, name, hole)
            }
            // A file system that answers with the place asked about would keep us here for ever.
            add(upTo: UInt64(hole) > position ? UInt64(hole) : range.end, isZero: false)
        }
        return extents
    }

    private static func checkLength(
        _ descriptor: Int32, atLeast end: UInt64, _ range: ByteRange, _ name: String
    ) throws(BlockError) {
        var status = stat()
        let result = cblockio_stat(descriptor, &status)
        guard result == 0 else { throw BlockError("Couldn't examine \(name)", errno: -result, range: range) }
        guard UInt64(max(0, status.st_size)) >= end else {
            throw BlockError(
                .inputOutput,
                "Couldn't look for data in \(range) of \(name): it has become shorter, \(status.st_size) bytes",
                range: range)
        }
    }

    private static func seekFailure(_ range: ByteRange, _ name: String, _ result: Int64) -> BlockError {
        BlockError(
            "Couldn't look for data in \(range) of \(name)", errno: Int32(truncatingIfNeeded: -result),
            range: range)
    }
}
