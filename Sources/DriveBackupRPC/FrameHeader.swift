/// The kinds of frames.
enum FrameType: UInt8, CaseIterable {
    case hello = 1
    case call = 2
    case message = 3
    case status = 4
    case cancel = 5
    case credit = 6
    case ping = 7
    case pong = 8
    case goAway = 9

    /// Whether it has a message that a program sends: the others have a few fields.
    var isMessage: Bool {
        switch self {
        case .call, .message, .status: true
        case .hello, .cancel, .credit, .ping, .pong, .goAway: false
        }
    }

    /// Whether it is about the connection, on stream 0, rather than about a call.
    var isAboutConnection: Bool {
        switch self {
        case .hello, .ping, .pong, .goAway: true
        case .call, .message, .status, .cancel, .credit: false
        }
    }
}

/// The 12 bytes before each payload, big-endian:
///
///     0 1 2 3 | 4 5 6 7 |  8   |   9   | 10 11
///     length  | stream  | type | flags | reserved, 0
struct FrameHeader: Equatable {
    static let size = 12
    /// No frame is larger, whatever the sides agree on.
    static let maxPayload = 4 << 20
    /// The most before the peer's HELLO has arrived.
    static let maxPayloadBeforeHello = 64 << 10
    /// The largest payload of a frame without a message, in bytes: nobody counts what those hold.
    static let maxControlPayload = 64 << 10
    /// Nobody has that much to say: a length beyond it means that the bytes are no header. (ASCII text read as
    /// a length is above 2^29; the first bytes of a TLS connection are, too.)
    static let absurdLength = 256 << 20

    var length: UInt32
    var stream: UInt32
    var type: FrameType
    /// The sender sends no more on this stream.
    var isEnd: Bool

    private static let endFlag: UInt8 = 1

    init(length: Int, stream: UInt32, type: FrameType, isEnd: Bool = false) {
        self.length = UInt32(length)
        self.stream = stream
        self.type = type
        self.isEnd = isEnd
    }

    /// Takes the header from its 12 bytes, or says why they are none.
    init(parsing bytes: UnsafeRawBufferPointer) throws(FramingError) {
        precondition(bytes.count == Self.size, "a header has 12 bytes")
        length = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 0, as: UInt32.self))
        stream = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        let flags = bytes[9]
        guard let type = FrameType(rawValue: bytes[8]) else {
            throw FramingError("frame type \(bytes[8]) does not exist")
        }
        self.type = type
        guard flags & ~Self.endFlag == 0 else { throw FramingError("flags \(flags) are not defined") }
        guard bytes[10] == 0, bytes[11] == 0 else { throw FramingError("the reserved bytes are not 0") }
        guard length <= Self.absurdLength else {
            throw FramingError("a payload of \(length) bytes is beyond reason")
        }
        guard type.isAboutConnection == (stream == 0) else {
            throw FramingError("a frame of type \(type.rawValue) cannot be on stream \(stream)")
        }
        isEnd = flags & Self.endFlag != 0
    }

    /// Writes the 12 bytes at the end of `bytes`.
    func append(to bytes: inout [UInt8]) {
        let flags = isEnd ? Self.endFlag : 0
        let header = (length.bigEndian, stream.bigEndian, type.rawValue, flags, 0 as UInt16)
        withUnsafeBytes(of: header) { bytes.append(contentsOf: $0) }
    }
}

/// The bytes that arrive are no frames of this protocol, or not in an order it allows: the connection ends.
struct FramingError: Error, Equatable {
    /// What the GOAWAY says.
    var code: RPCCode
    /// What was wrong, as the end of a sentence.
    var problem: String

    init(_ problem: String, code: RPCCode = .invalidArgument) {
        self.code = code
        self.problem = problem
    }

    var status: RPCStatus { RPCStatus(code, "The connection ends: \(problem).") }
}
