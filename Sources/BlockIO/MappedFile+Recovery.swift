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

    /// A number for this boot of the host, as the kernel gives it: what lies in memory is of use during one boot only.
    package static func bootID() throws(BlockError) -> (UInt64, UInt64) {
        let path = "/proc/sys/kernel/random/boot_id"
        let descriptor = cblockio_open(path, O_RDONLY, 0)
        guard descriptor >= 0 else { throw BlockError("Couldn't open \(path)", errno: -descriptor) }
        defer { _ = cblockio_close(descriptor) }
        var text = [UInt8](repeating: 0, count: 64)
        let count = cblockio_pread(descriptor, &text, text.count, 0)
        let digits = text.prefix(Int(max(0, count))).compactMap { Character(UnicodeScalar($0)).hexDigitValue }
        guard digits.count == 32 else {
            throw BlockError(.unsupported, "Couldn't read \(path): it does not hold 32 hexadecimal digits")
        }
        func number(_ digits: ArraySlice<Int>) -> UInt64 { digits.reduce(0) { $0 << 4 | UInt64($1) } }
        return (number(digits[..<16]), number(digits[16...]))
    }
}
