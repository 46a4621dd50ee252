/// The server's side of the fixed newstyle handshake (NBD proto.md, "Fixed newstyle negotiation").
///
/// Bytes go in, in pieces of any size, and actions come out, in the order in which they are to be done. It does no I/O
/// and knows no time. The exports are looked up anew for each option.
struct HandshakeMachine {
    enum Action: Equatable, Sendable {
        case send([UInt8])
        /// The handshake is over; what is behind it belongs to the transmission.
        case transmit(Agreement)
        /// The client is done, or cannot be understood: send what is to be sent, and close.
        case close(Ending)
    }

    enum Ending: Equatable, Sendable {
        /// NBD_OPT_ABORT.
        case aborted
        case garbage(String)
        /// NBD_OPT_EXPORT_NAME, which has no error reply, for an export that does not exist.
        case unknownExport(String)
    }

    /// What both sides agreed on.
    struct Agreement: Equatable, Sendable {
        /// Tells exports of the same name, one after the other, apart.
        var exportID: UInt64
        var hasStructuredReplies = false
        /// The client asked for the metadata context base:allocation of this export.
        var hasAllocationContext = false
    }

    /// What a client can learn of an export.
    struct ExportFacts: Equatable, Sendable {
        var id: UInt64
        var name: String
        var description: String
        var size: UInt64
        var flags: TransmissionFlags
        /// In bytes.
        var minimumBlock: UInt32
    }

    private enum State {
        case clientFlags
        case optionHeader
        case optionData(option: UInt32, length: Int)
        /// An option too long to be looked at; so many bytes of it are to come.
        case draining(option: UInt32, left: Int)
        case over
    }

    /// More than any option that makes sense; longer ones are refused, absurd ones end the connection.
    static let maximumOption = 64 << 10
    static let absurdOption = 1 << 20
    /// Nobody needs so many; each costs us time.
    static let maximumOptions = 1024

    private let exports: @Sendable () -> [ExportFacts]
    private var state = State.clientFlags
    private var bytes: [UInt8] = []
    private var sendsZeroes = true
    private var options = 0
    private var hasStructuredReplies = false
    /// The export for which base:allocation was set.
    private var contextExport: UInt64?

    /// `exports` lists what is served, the default one (which has the empty name, too) first.
    init(exports: @escaping @Sendable () -> [ExportFacts]) { self.exports = exports }

    /// What a server says before the client says anything.
    static let greeting: [UInt8] = {
        var bytes: [UInt8] = []
        bytes.append(bigEndian: NBDProtocol.serverMagic)
        bytes.append(bigEndian: NBDProtocol.optionMagic)
        bytes.append(bigEndian: UInt16(3))
        return bytes
    }()

    /// Takes what has arrived. After `.transmit` the rest of it is in `leftover`.
    mutating func receive(_ arrived: some Sequence<UInt8>) -> [Action] {
        bytes.append(contentsOf: arrived)
        var actions: [Action] = []
        var position = 0
        loop: while true {
            let left = bytes.count - position
            switch state {
            case .clientFlags:
                guard left >= 4 else { break loop }
                let flags = integer(UInt32.self, at: position)
                position += 4
                actions += begin(HandshakeFlags(rawValue: flags))
            case .optionHeader:
                guard left >= 16 else { break loop }
                guard integer(UInt64.self, at: position) == NBDProtocol.optionMagic else {
                    actions.append(end(.garbage("an option does not start as options do")))
                    break loop
                }
                let option = integer(UInt32.self, at: position + 8)
                let length = Int(integer(UInt32.self, at: position + 12))
                position += 16
                actions += beginOption(option, length)
            case .optionData(let option, let length):
                guard left >= length else { break loop }
                state = .optionHeader
                actions += answer(option, bytes[position..<position + length])
                position += length
            case .draining(let option, let missing):
                let dropped = min(left, missing)
                position += dropped
                guard dropped == missing else {
                    state = .draining(option: option, left: missing - dropped)
                    break loop
                }
                state = .optionHeader
                actions.append(
                    reply(option, .tooBig, message: "An option has at most \(Self.maximumOption) bytes"))
            case .over: break loop
            }
        }
        bytes.removeFirst(position)
        return actions
    }

    /// What arrived and was not used.
    var leftover: [UInt8] { bytes }

    private func integer<Value: FixedWidthInteger & BitwiseCopyable>(
        _ type: Value.Type, at position: Int
    ) -> Value {
        bytes.withUnsafeBytes { $0.bigEndian(at: position, as: type) }
    }

    private mutating func begin(_ flags: HandshakeFlags) -> [Action] {
        guard flags.isSubset(of: [.fixedNewstyle, .noZeroes]) else {
            return [end(.garbage("the client has flags that no server offered"))]
        }
        sendsZeroes = !flags.contains(.noZeroes)
        state = .optionHeader
        return []
    }

    private mutating func beginOption(_ option: UInt32, _ length: Int) -> [Action] {
        options += 1
        guard options <= Self.maximumOptions else {
            return [end(.garbage("the client has sent \(options) options and asks for more"))]
        }
        guard length <= Self.absurdOption else {
            return [end(.garbage("an option has \(length) bytes"))]
        }
        if length <= Self.maximumOption {
            state = .optionData(option: option, length: length)
        } else if option == NBDOption.exportName.rawValue {
            return [end(.garbage("the name of an export has \(length) bytes"))]
        } else {
            state = .draining(option: option, left: length)
        }
        return []
    }

    private mutating func end(_ ending: Ending) -> Action {
        state = .over
        return .close(ending)
    }

    // MARK: Options

    private mutating func answer(_ number: UInt32, _ data: ArraySlice<UInt8>) -> [Action] {
        guard let option = NBDOption(rawValue: number) else {
            return [reply(number, .unsupported, message: "This server does not know option \(number)")]
        }
        switch option {
        case .exportName: return transmitOldStyle(data)
        case .abort: return [reply(number, .ack), end(.aborted)]
        case .list: return list(data)
        case .startTLS: return [reply(number, .unsupported, message: "This server has no TLS")]
        case .info: return inform(number, data) ?? [malformed(number)]
        case .go: return inform(number, data, goes: true) ?? [malformed(number)]
        case .structuredReply:
            guard data.isEmpty else { return [malformed(number)] }
            hasStructuredReplies = true
            return [reply(number, .ack)]
        case .listMetaContext: return contexts(number, data) ?? [malformed(number)]
        case .setMetaContext:
            // Whatever this one asks for, what was set before does not count any more.
            contextExport = nil
            return contexts(number, data, sets: true) ?? [malformed(number)]
        }
    }

    private func find(_ name: String) -> ExportFacts? {
        let exports = exports()
        return exports.first { $0.name == name } ?? (name.isEmpty ? exports.first : nil)
    }

    /// NBD_OPT_EXPORT_NAME: the name is the whole of it, and the answer has no header.
    private mutating func transmitOldStyle(_ data: ArraySlice<UInt8>) -> [Action] {
        guard data.count <= NBDProtocol.maximumString, let name = String(validating: data, as: UTF8.self)
        else {
            return [end(.garbage("the name of an export is no text of at most 4096 bytes"))]
        }
        guard let export = find(name) else { return [end(.unknownExport(name))] }
        var bytes: [UInt8] = []
        bytes.append(bigEndian: export.size)
        bytes.append(bigEndian: flags(of: export).rawValue)
        if sendsZeroes { bytes.append(contentsOf: repeatElement(0, count: 124)) }
        return transmit(export, after: bytes)
    }

    private mutating func transmit(_ export: ExportFacts, after bytes: [UInt8]) -> [Action] {
        state = .over
        let agreement = Agreement(
            exportID: export.id, hasStructuredReplies: hasStructuredReplies,
            hasAllocationContext: hasStructuredReplies && contextExport == export.id)
        return [.send(bytes), .transmit(agreement)]
    }

    private func flags(of export: ExportFacts) -> TransmissionFlags {
        hasStructuredReplies ? export.flags.union(.sendDF) : export.flags
    }

    private func list(_ data: ArraySlice<UInt8>) -> [Action] {
        let option = NBDOption.list.rawValue
        guard data.isEmpty else { return [malformed(option)] }
        var bytes: [UInt8] = []
        for export in exports() {
            var payload: [UInt8] = []
            payload.append(bigEndian: UInt32(export.name.utf8.count))
            payload += export.name.utf8
            payload += export.description.utf8.prefix(NBDProtocol.maximumString)
            Self.append(option, .server, payload, to: &bytes)
        }
        Self.append(option, .ack, [], to: &bytes)
        return [.send(bytes)]
    }

    /// NBD_OPT_INFO and NBD_OPT_GO; nil when the option is malformed.
    private mutating func inform(_ option: UInt32, _ data: ArraySlice<UInt8>, goes: Bool = false) -> [Action]?
    {
        var reader = ByteReader(data)
        guard let name = reader.string(), let count = reader.integer(UInt16.self) else { return nil }
        var wanted: Set<UInt16> = []
        for _ in 0..<count {
            guard let type = reader.integer(UInt16.self) else { return nil }
            wanted.insert(type)
        }
        guard reader.isAtEnd else { return nil }
        guard let export = find(name) else { return [unknown(option, name)] }

        var bytes: [UInt8] = []
        func add(_ type: InfoType, _ fill: (inout [UInt8]) -> Void) {
            var payload: [UInt8] = []
            payload.append(bigEndian: type.rawValue)
            fill(&payload)
            Self.append(option, .info, payload, to: &bytes)
        }
        add(.export) {
            $0.append(bigEndian: export.size)
            $0.append(bigEndian: flags(of: export).rawValue)
        }
        if wanted.contains(InfoType.name.rawValue) { add(.name) { $0 += export.name.utf8 } }
        if wanted.contains(InfoType.description.rawValue), !export.description.isEmpty {
            add(.description) { $0 += export.description.utf8.prefix(NBDProtocol.maximumString) }
        }
        // Told to everybody: no size that we take is refused to whoever did not ask.
        add(.blockSize) {
            $0.append(bigEndian: export.minimumBlock)
            $0.append(bigEndian: max(NBDProtocol.preferredBlock, export.minimumBlock))
            $0.append(bigEndian: NBDProtocol.maximumPayload)
        }
        Self.append(option, .ack, [], to: &bytes)
        return goes ? transmit(export, after: bytes) : [.send(bytes)]
    }

    /// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT; nil when the option is malformed.
    private mutating func contexts(_ option: UInt32, _ data: ArraySlice<UInt8>, sets: Bool = false)
        -> [Action]?
    {
        guard hasStructuredReplies else {
            return [reply(option, .invalid, message: "Metadata contexts need structured replies first")]
        }
        var reader = ByteReader(data)
        guard let name = reader.string(), let count = reader.integer(UInt32.self) else { return nil }
        // Without a query everything is listed, and nothing is set.
        var isWanted = count == 0 && !sets
        var queries: UInt32 = 0
        while queries < count {
            guard let query = reader.string() else { return nil }
            if query == NBDProtocol.allocationContext || query == "base:" && !sets { isWanted = true }
            queries += 1
        }
        guard reader.isAtEnd else { return nil }
        guard let export = find(name) else { return [unknown(option, name)] }
        var bytes: [UInt8] = []
        if isWanted {
            var payload: [UInt8] = []
            payload.append(bigEndian: sets ? NBDProtocol.allocationContextID : 0)
            payload += NBDProtocol.allocationContext.utf8
            Self.append(option, .metaContext, payload, to: &bytes)
            if sets { contextExport = export.id }
        }
        Self.append(option, .ack, [], to: &bytes)
        return [.send(bytes)]
    }

    // MARK: Replies

    private func malformed(_ option: UInt32) -> Action {
        reply(option, .invalid, message: "Option \(option) does not have the form that it should")
    }

    private func unknown(_ option: UInt32, _ name: String) -> Action {
        reply(option, .unknown, message: "There is no export of the name \"\(name.prefix(256))\" here")
    }

    private func reply(_ option: UInt32, _ reply: OptionReply, message: String = "") -> Action {
        var bytes: [UInt8] = []
        Self.append(option, reply, Array(message.utf8), to: &bytes)
        return .send(bytes)
    }

    private static func append(
        _ option: UInt32, _ reply: OptionReply, _ payload: [UInt8], to bytes: inout [UInt8]
    ) {
        bytes.append(bigEndian: NBDProtocol.optionReplyMagic)
        bytes.append(bigEndian: option)
        bytes.append(bigEndian: reply.rawValue)
        bytes.append(bigEndian: UInt32(payload.count))
        bytes += payload
    }
}
