internal import CProtobufC

/// How a field's value is encoded (the protobuf encoding, "Message Structure"). Groups are not among them.
enum WireType: UInt32, CustomStringConvertible {
    case varint = 0
    case fixed64 = 1
    case lengthDelimited = 2
    case fixed32 = 5

    /// The encoding that a type of libprotobuf-c needs.
    init(of type: ProtobufCType) {
        switch type {
        case PROTOBUF_C_TYPE_FIXED64, PROTOBUF_C_TYPE_SFIXED64, PROTOBUF_C_TYPE_DOUBLE: self = .fixed64
        case PROTOBUF_C_TYPE_FIXED32, PROTOBUF_C_TYPE_SFIXED32, PROTOBUF_C_TYPE_FLOAT: self = .fixed32
        case PROTOBUF_C_TYPE_STRING, PROTOBUF_C_TYPE_BYTES, PROTOBUF_C_TYPE_MESSAGE: self = .lengthDelimited
        default: self = .varint
        }
    }

    var description: String {
        switch self {
        case .varint: "a varint"
        case .fixed64: "eight bytes"
        case .lengthDelimited: "a length and bytes"
        case .fixed32: "four bytes"
        }
    }
}

/// Reads the parts of an encoded message, with an error wherever the bytes end too early or mean nothing.
struct WireInput {
    private let bytes: UnsafeRawBufferPointer
    private var offset = 0

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    var isAtEnd: Bool { offset >= bytes.count }

    /// The number and the encoding of the next field.
    mutating func tag() throws(WireError) -> (number: UInt32, type: WireType) {
        let start = offset
        let tag = try varint(mostBytes: 5)
        guard let value = UInt32(exactly: tag), value >> 3 != 0 else {
            throw WireError(.malformed, "there is no valid field number at byte \(start)")
        }
        guard let type = WireType(rawValue: value & 7) else {
            let what = value & 7 == 3 || value & 7 == 4 ? "a group" : "of wire type \(value & 7)"
            throw WireError(.malformed, "field \(value >> 3) is \(what), which this protocol does not have")
        }
        return (value >> 3, type)
    }

    /// A number of at most 64 bits.
    @inline(__always) mutating func varint(mostBytes: Int = 10) throws(WireError) -> UInt64 {
        // Most numbers have one byte.
        if offset < bytes.count, bytes[offset] < 0x80 {
            defer { offset += 1 }
            return UInt64(bytes[offset])
        }
        return try longVarint(mostBytes: mostBytes)
    }

    private mutating func longVarint(mostBytes: Int) throws(WireError) -> UInt64 {
        var result: UInt64 = 0
        for index in 0..<mostBytes {
            guard offset < bytes.count else { throw Self.truncated }
            let byte = bytes[offset]
            offset += 1
            guard index < 9 || byte <= 1 else { break }
            result |= UInt64(byte & 0x7f) << UInt64(7 * index)
            if byte & 0x80 == 0 { return result }
        }
        throw WireError(.malformed, "a number is longer than its type can be")
    }

    /// The bytes of a string, of bytes, of a message, or of packed elements.
    mutating func lengthDelimited() throws(WireError) -> UnsafeRawBufferPointer {
        let length = try varint(mostBytes: 5)
        guard length <= UInt64(bytes.count - offset) else { throw Self.truncated }
        let result = UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + Int(length)])
        offset += Int(length)
        return result
    }

    /// Passes over a value.
    mutating func skip(_ type: WireType) throws(WireError) {
        switch type {
        case .varint: _ = try varint()
        case .fixed64: try skip(bytes: 8)
        case .fixed32: try skip(bytes: 4)
        case .lengthDelimited: _ = try lengthDelimited()
        }
    }

    private mutating func skip(bytes count: Int) throws(WireError) {
        guard count <= bytes.count - offset else { throw Self.truncated }
        offset += count
    }

    private static var truncated: WireError {
        WireError(.malformed, "the message ends in the middle of a field")
    }
}
