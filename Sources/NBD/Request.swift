/// What a client asks for, as it stands on the wire (NBD proto.md, "Request message").
struct RequestHeader: Equatable, Sendable {
    static let byteCount = 28

    var flags: CommandFlags
    var type: UInt16
    /// Comes back with each reply, whatever it is.
    var cookie: UInt64
    var offset: UInt64
    var length: UInt32

    init(flags: CommandFlags = [], type: UInt16, cookie: UInt64, offset: UInt64, length: UInt32) {
        self.flags = flags
        self.type = type
        self.cookie = cookie
        self.offset = offset
        self.length = length
    }

    /// Reads the header at the start of `bytes`, which holds at least one; nil when it does not begin as one does.
    init?(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.bigEndian(at: 0, as: UInt32.self) == NBDProtocol.requestMagic else { return nil }
        flags = CommandFlags(rawValue: bytes.bigEndian(at: 4, as: UInt16.self))
        type = bytes.bigEndian(at: 6, as: UInt16.self)
        cookie = bytes.bigEndian(at: 8, as: UInt64.self)
        offset = bytes.bigEndian(at: 16, as: UInt64.self)
        length = bytes.bigEndian(at: 24, as: UInt32.self)
    }
}

/// Decides what becomes of a request before anything is done for it.
struct RequestRules: Sendable {
    enum Verdict: Equatable, Sendable {
        case serve(NBDCommand)
        /// Nothing is done; so many bytes of payload follow the header and are dropped.
        case refuse(NBDError, String, payload: Int)
        case disconnect
        /// What follows cannot be told from garbage.
        case close(String)
    }

    /// A write longer than this is no mistake of a client that means well.
    static let absurdPayload: UInt32 = 64 << 20

    /// The export's size in bytes.
    var size: UInt64
    var isReadOnly: Bool
    /// Offsets and lengths are multiples of it, the export's end excepted.
    var minimumBlock: UInt64
    var hasStructuredReplies: Bool
    var hasAllocationContext: Bool
    /// The longest read that is answered with one chunk, in bytes.
    var maximumUnfragmented: UInt32
    /// The export goes away.
    var isEnding = false

    func judge(_ request: RequestHeader) -> Verdict {
        let command = NBDCommand(rawValue: request.type)
        if command == .disconnect { return .disconnect }
        let payload = command == .write ? Int(request.length) : 0
        guard payload < Int(Self.absurdPayload) else {
            return .close("a write has a payload of \(payload) bytes")
        }
        guard let (error, message) = objection(to: request, command) else {
            // Without an objection there is a command.
            return command.map(Verdict.serve) ?? .close("a request has no command")
        }
        return .refuse(error, message, payload: payload)
    }

    private func objection(to request: RequestHeader, _ command: NBDCommand?) -> (NBDError, String)? {
        guard let command else { return (.invalid, "This server does not know command \(request.type)") }
        guard !isEnding else { return (.shutdown, "The export is about to go away") }
        guard request.flags.isSubset(of: allowedFlags(for: command)) else {
            return (.invalid, "Flags \(request.flags.rawValue) do not belong to command \(request.type)")
        }
        let writes = command == .write || command == .trim || command == .writeZeroes
        guard !writes || !isReadOnly else { return (.notPermitted, "The export is read-only") }
        // Its offset and length mean nothing.
        if command == .flush { return nil }
        if command == .blockStatus {
            guard hasAllocationContext else { return (.invalid, "No metadata context was agreed on") }
            guard request.length > 0 else { return (.invalid, "A block status has a length") }
        }
        if command == .read || command == .write {
            guard request.length <= NBDProtocol.maximumPayload else {
                return (.invalid, "A payload has at most \(NBDProtocol.maximumPayload) bytes")
            }
        }
        if command == .read, request.flags.contains(.df), request.length > maximumUnfragmented {
            return (.overflow, "Without fragments a read has at most \(maximumUnfragmented) bytes")
        }
        return objectionToRange(request, writes: command == .write || command == .writeZeroes)
    }

    private func objectionToRange(_ request: RequestHeader, writes: Bool) -> (NBDError, String)? {
        let (end, overflow) = request.offset.addingReportingOverflow(UInt64(request.length))
        guard !overflow, end <= size else {
            return (writes ? .noSpace : .invalid, "The export has only \(size) bytes")
        }
        guard request.offset % minimumBlock == 0, end % minimumBlock == 0 || end == size else {
            return (.invalid, "Offsets and lengths are multiples of \(minimumBlock)")
        }
        return nil
    }

    private func allowedFlags(for command: NBDCommand) -> CommandFlags {
        switch command {
        // NBD_CMD_FLAG_FUA goes with every command, and means something for those that write.
        case .read: hasStructuredReplies ? [.fua, .df] : .fua
        case .writeZeroes: [.fua, .noHole, .fastZero]
        case .blockStatus: [.fua, .reqOne]
        case .write, .disconnect, .flush, .trim: .fua
        }
    }
}
