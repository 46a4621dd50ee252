/// The numbers of the protocol (NBD proto.md, "Values"). All integers on the wire are big-endian.
enum NBDProtocol {
    /// "NBDMAGIC", what a server says first.
    static let serverMagic: UInt64 = 0x4e42_444d_4147_4943
    /// "IHAVEOPT", before the server's flags and before each option.
    static let optionMagic: UInt64 = 0x4948_4156_454f_5054
    static let optionReplyMagic: UInt64 = 0x0003_e889_0455_65a9
    static let requestMagic: UInt32 = 0x2560_9513
    static let simpleReplyMagic: UInt32 = 0x6744_6698
    static let structuredReplyMagic: UInt32 = 0x668e_33ef

    /// The longest name or other string, in bytes.
    static let maximumString = 4096
    /// The longest payload of a request or reply, as announced with NBD_INFO_BLOCK_SIZE.
    static let maximumPayload: UInt32 = 32 << 20
    static let preferredBlock: UInt32 = 4096
    /// The metadata context that tells holes and zeroes.
    static let allocationContext = "base:allocation"
    static let allocationContextID: UInt32 = 1
}

/// Flags of the handshake; the same numbers each way.
struct HandshakeFlags: OptionSet, Sendable {
    let rawValue: UInt32
    static let fixedNewstyle = HandshakeFlags(rawValue: 1 << 0)
    static let noZeroes = HandshakeFlags(rawValue: 1 << 1)
}

/// What a client may ask for in the handshake.
enum NBDOption: UInt32, Sendable {
    case exportName = 1
    case abort = 2
    case list = 3
    case startTLS = 5
    case info = 6
    case go = 7
    case structuredReply = 8
    case listMetaContext = 9
    case setMetaContext = 10
}

/// What is answered to an option.
enum OptionReply: UInt32, Sendable {
    case ack = 1
    case server = 2
    case info = 3
    case metaContext = 4
    case unsupported = 0x8000_0001
    case policy = 0x8000_0002
    case invalid = 0x8000_0003
    case unknown = 0x8000_0006
    case shutdown = 0x8000_0007
    case tooBig = 0x8000_0009
}

enum InfoType: UInt16, Sendable {
    case export = 0
    case name = 1
    case description = 2
    case blockSize = 3
}

/// What a client may do with an export, and what it may count on.
struct TransmissionFlags: OptionSet, Sendable {
    let rawValue: UInt16
    static let hasFlags = TransmissionFlags(rawValue: 1 << 0)
    static let readOnly = TransmissionFlags(rawValue: 1 << 1)
    static let sendFlush = TransmissionFlags(rawValue: 1 << 2)
    static let sendFUA = TransmissionFlags(rawValue: 1 << 3)
    static let sendTrim = TransmissionFlags(rawValue: 1 << 5)
    static let sendWriteZeroes = TransmissionFlags(rawValue: 1 << 6)
    static let sendDF = TransmissionFlags(rawValue: 1 << 7)
    static let canMultiConn = TransmissionFlags(rawValue: 1 << 8)
    static let sendFastZero = TransmissionFlags(rawValue: 1 << 11)
}

enum NBDCommand: UInt16, Sendable {
    case read = 0
    case write = 1
    case disconnect = 2
    case flush = 3
    case trim = 4
    case writeZeroes = 6
    case blockStatus = 7
}

struct CommandFlags: OptionSet, Sendable {
    let rawValue: UInt16
    static let fua = CommandFlags(rawValue: 1 << 0)
    static let noHole = CommandFlags(rawValue: 1 << 1)
    static let df = CommandFlags(rawValue: 1 << 2)
    static let reqOne = CommandFlags(rawValue: 1 << 3)
    static let fastZero = CommandFlags(rawValue: 1 << 4)
}

enum ChunkType: UInt16, Sendable {
    case none = 0
    case offsetData = 1
    case offsetHole = 2
    case blockStatus = 5
    case error = 0x8001
}

/// What went wrong with a request, as a client is told ("Error values").
enum NBDError: UInt32, Sendable {
    case notPermitted = 1
    case inputOutput = 5
    case noMemory = 12
    case invalid = 22
    case noSpace = 28
    case overflow = 75
    case notSupported = 95
    case shutdown = 108
}

/// What is known of a run of bytes (metadata context base:allocation).
struct AllocationFlags: OptionSet, Sendable {
    let rawValue: UInt32
    static let hole = AllocationFlags(rawValue: 1 << 0)
    static let zero = AllocationFlags(rawValue: 1 << 1)
}
