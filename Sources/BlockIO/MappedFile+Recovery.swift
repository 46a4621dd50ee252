internal import CBlockIO
internal import Glibc

/// What is needed of a mapped file that an earlier process has left.
extension MappedFile {
    /// The parts that have space, in order. A part without is not to be touched, not even for reading: that would take
    /// space. Blocks.
    package func dataRanges() throws(BlockError) -> [Range<Int>] {
        var ranges: [Range<Int>] = []
        var position = 0
        while position < length {
            let data = cblockio_seek_data(descriptor, UInt64(position))
            if data == Int64(-ENXIO) { break }
            guard data >= 0 else {
                throw BlockError("Couldn't look for data in \(path)", errno: Int32(truncatingIfNeeded: -data))
            }
            guard data < length else { break }
            let hole = cblockio_seek_hole(descriptor, UInt64(data))
            guard hole > data else {
                throw BlockError("Couldn't look for data in \(path)", errno: EIO)
            }
            ranges.append(Int(data)..<min(length, Int(hole)))
            position = Int(hole)
        }
        return ranges
    }
}
