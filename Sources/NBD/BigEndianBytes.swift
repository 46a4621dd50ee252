/// Big-endian integers at the end of an array of bytes.
extension [UInt8] {
    mutating func append(bigEndian value: some FixedWidthInteger) {
        Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
    }
}

extension UnsafeRawBufferPointer {
    /// The big-endian integer at `offset`, which lies in the buffer.
    func bigEndian<Value: FixedWidthInteger & BitwiseCopyable>(at offset: Int, as type: Value.Type) -> Value {
        Value(bigEndian: loadUnaligned(fromByteOffset: offset, as: type))
    }
}

extension UnsafeMutableRawBufferPointer {
    /// Stores a big-endian integer at `offset`, where there is room.
    func store(bigEndian value: some FixedWidthInteger & BitwiseCopyable, at offset: Int) {
        storeBytes(of: value.bigEndian, toByteOffset: offset, as: type(of: value))
    }
}

/// Reads what a peer sent, from front to back; nil where bytes are missing.
struct ByteReader {
    private let bytes: ArraySlice<UInt8>
    private var position: Int

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        position = bytes.startIndex
    }

    var isAtEnd: Bool { position == bytes.endIndex }

    mutating func integer<Value: FixedWidthInteger>(_: Value.Type) -> Value? {
        guard let part = take(MemoryLayout<Value>.size) else { return nil }
        return part.reduce(Value(0)) { ($0 << 8) | Value(truncatingIfNeeded: $1) }
    }

    /// A length of 32 bits and so many bytes of UTF-8; nil, too, when they are something else or too many.
    mutating func string() -> String? {
        guard let length = integer(UInt32.self), length <= NBDProtocol.maximumString,
            let part = take(Int(length)), !part.contains(0)
        else { return nil }
        return String(validating: part, as: UTF8.self)
    }

    private mutating func take(_ count: Int) -> ArraySlice<UInt8>? {
        guard bytes.endIndex - position >= count else { return nil }
        defer { position += count }
        return bytes[position..<position + count]
    }
}
