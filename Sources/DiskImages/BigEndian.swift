/// Big-endian numbers in raw memory, as qcow2 stores them.
///
/// Callers have checked the bounds of what comes from outside; a position outside of the buffer is a bug of ours.
extension UnsafeRawBufferPointer {
    @inline(__always)
    func bigEndian<Number: FixedWidthInteger>(at position: Int, as type: Number.Type = Number.self) -> Number
    {
        precondition(position >= 0 && position <= count - MemoryLayout<Number>.size, "a number in its buffer")
        return Number(bigEndian: loadUnaligned(fromByteOffset: position, as: Number.self))
    }
}

extension UnsafeMutableRawBufferPointer {
    @inline(__always)
    func bigEndian<Number: FixedWidthInteger>(at position: Int, as type: Number.Type = Number.self) -> Number
    {
        UnsafeRawBufferPointer(self).bigEndian(at: position)
    }

    @inline(__always)
    func storeBigEndian<Number: FixedWidthInteger>(_ number: Number, at position: Int) {
        precondition(position >= 0 && position <= count - MemoryLayout<Number>.size, "a number in its buffer")
        storeBytes(of: number.bigEndian, toByteOffset: position, as: Number.self)
    }
}
