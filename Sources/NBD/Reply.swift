internal import BlockIO

/// One message to a client: a simple reply, or a chunk of a structured one (NBD proto.md, "Simple reply message",
/// "Structured reply chunk message").
struct Reply: Sendable {
    enum Form: Sendable {
        case simple(NBDError?)
        /// The header of a simple reply and its data; nil when the data follows separately.
        case simpleData(IOSlice?)
        case data(offset: UInt64, IOSlice)
        /// The header of a reply to a read of `range`, whose data the device puts into the sender's pipe when it is its turn.
        case pages(ByteRange, isStructured: Bool)
        /// A structured reply without content.
        case none
        case error(NBDError, String)
        /// Lengths and flags of base:allocation.
        case status([(length: UInt32, flags: AllocationFlags)])
        /// Nothing to send: whoever waits for it sends by himself.
        case turn
    }

    var cookie: UInt64
    var form: Form
    /// Nothing more comes for the request.
    var isLast = true
    /// Memory of the request's that is given back when this has left.
    var buffer: IOBuffer?
    /// Who waits until this has left, or never will.
    var waiter: UnsafeContinuation<Void, Never>?

    /// Room that suffices for every header, message and list.
    static let maximumHead = 8 << 10
    static let maximumExtents = 512
    private static let maximumMessage = 512

    /// The bytes that are sent behind the head, where they lie.
    var payload: IOSlice? {
        switch form {
        case .simpleData(let slice): slice
        case .data(_, let slice): slice
        default: nil
        }
    }

    /// What the device is to put into the sender's pipe, behind the head.
    var range: ByteRange? {
        if case .pages(let range, _) = form { range } else { nil }
    }

    /// Writes all but the payload to the start of `room`, which has `maximumHead` bytes; returns how many bytes it took.
    func encodeHead(into room: UnsafeMutableRawBufferPointer) -> Int {
        switch form {
        case .turn: return 0
        case .simple(let error): return simple(error, room)
        case .simpleData: return simple(nil, room)
        case .none: return chunk(.none, length: 0, room)
        case .data(let offset, let slice):
            room.store(bigEndian: offset, at: 20)
            return chunk(.offsetData, length: 8 + slice.count, room) - slice.count
        case .pages(_, isStructured: false): return simple(nil, room)
        case .pages(let range, isStructured: true):
            room.store(bigEndian: range.offset, at: 20)
            return chunk(.offsetData, length: 8 + Int(range.length), room) - Int(range.length)
        case .error(let error, let message):
            let text = Array(message.utf8.prefix(Self.maximumMessage))
            room.store(bigEndian: error.rawValue, at: 20)
            room.store(bigEndian: UInt16(text.count), at: 24)
            UnsafeMutableRawBufferPointer(rebasing: room[26...]).copyBytes(from: text)
            return chunk(.error, length: 6 + text.count, room)
        case .status(let extents):
            precondition(extents.count <= Self.maximumExtents, "a list of extents has a bound")
            room.store(bigEndian: NBDProtocol.allocationContextID, at: 20)
            for (index, extent) in extents.enumerated() {
                room.store(bigEndian: extent.length, at: 24 + index * 8)
                room.store(bigEndian: extent.flags.rawValue, at: 28 + index * 8)
            }
            return chunk(.blockStatus, length: 4 + extents.count * 8, room)
        }
    }

    private func simple(_ error: NBDError?, _ room: UnsafeMutableRawBufferPointer) -> Int {
        room.store(bigEndian: NBDProtocol.simpleReplyMagic, at: 0)
        room.store(bigEndian: error?.rawValue ?? 0, at: 4)
        room.store(bigEndian: cookie, at: 8)
        return 16
    }

    private func chunk(_ type: ChunkType, length: Int, _ room: UnsafeMutableRawBufferPointer) -> Int {
        room.store(bigEndian: NBDProtocol.structuredReplyMagic, at: 0)
        room.store(bigEndian: UInt16(isLast ? 1 : 0), at: 4)
        room.store(bigEndian: type.rawValue, at: 6)
        room.store(bigEndian: cookie, at: 8)
        room.store(bigEndian: UInt32(length), at: 16)
        return 20 + length
    }
}
