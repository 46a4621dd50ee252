internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Foundation

// What the agent and a target's process say to each other over their socket. Data never does: requests name a place in the
// shared memory. Both are the same program, so a frame is what the two find handy: a header of 40 bytes, little-endian, and
// for everything but the three transfers and their good outcome a message as JSON.
//
//   bytes 0–3 length of the message   4–7 kind   8–15 the request's number   16–23 offset   24–31 length   32–39 memory

/// What the agent asks of a target's process, or answers it.
enum TargetRequest: Sendable, Codable {
    /// Answered with `done` or `refused`.
    case check(TargetSpec)
    /// Answered with `opened` or `refused`; once.
    case open(TargetSpec)
    /// Answered with `opened`, `published` or `refused`; once.
    case reopen(TargetSpec)
    /// Answered with `done` or `failed`, as the three below. The bytes are `memory` bytes into the shared memory.
    case write(ByteRange, memory: UInt64)
    case writeZeroes(ByteRange)
    case read(ByteRange, memory: UInt64)
    case clone(ByteRange)
    /// Answered with `done` or `failed`, as the next one.
    case prepare
    case publish
    /// Answered with `done` or `failed`.
    case putManifest(Data, isFinal: Bool)
    /// Answered with `givenUp`.
    case giveUp(keep: Bool)
    /// Answered with `done`.
    case leave
    /// Answered with `done` or `failed`; needs no open target.
    case remove(TargetLeftover)
    /// The answer to `claim`: nil, or why not.
    case claimed(AgentError?)
}

/// What a target's process answers, or asks by itself.
enum TargetReply: Sendable, Codable {
    case done
    case opened(OpenedTarget)
    /// It has its name already.
    case published
    case refused(AgentError)
    case failed(BlockError, JobIOError.Operation?)
    case givenUp(isComplete: Bool)
    /// May the job have these files? Answered with `claimed`.
    case claim([FileIdentity], path: String)
    /// The job has none any more.
    case released
    case releasedFile(FileIdentity)
    /// This file is made now, or was.
    case made(TargetLeftover)
}

/// What there is to know of an open target.
struct OpenedTarget: Sendable, Codable {
    var name: String
    var format: ImageFormat
    var clusterSize: UInt64
    var isProbedRaw: Bool
    var readsAsZero: Bool
    var clones: Bool
    var manifestPath: String
    var resumption: TargetSpec.Resumption?

    init(_ target: any JobTarget) {
        name = target.name
        format = target.format
        clusterSize = target.clusterSize
        isProbedRaw = target.isProbedRaw
        readsAsZero = target.readsAsZero
        clones = target.clones
        manifestPath = target.manifestPath
        resumption = target.resumption
    }
}

/// A header and its message.
struct TargetFrame: Sendable {
    enum Kind: UInt32, Sendable { case message, write, writeZeroes, read, done }

    static let headerSize = 40
    /// No message is longer, in bytes: the longest has a manifest in base64.
    static let bound = Manifest.largest / 3 * 4 + 1 << 20

    var kind: Kind
    var id: UInt64
    var range = ByteRange(offset: 0, length: 0)
    var memory: UInt64 = 0
    var message: [UInt8] = []

    init(_ request: TargetRequest, id: UInt64) {
        self.id = id
        switch request {
        case .write(let range, let memory): (kind, self.range, self.memory) = (.write, range, memory)
        case .writeZeroes(let range): (kind, self.range) = (.writeZeroes, range)
        case .read(let range, let memory): (kind, self.range, self.memory) = (.read, range, memory)
        default: (kind, message) = (.message, Self.encode(request))
        }
    }

    init(_ reply: TargetReply, id: UInt64) {
        self.id = id
        if case .done = reply { kind = .done } else { (kind, message) = (.message, Self.encode(reply)) }
    }

    fileprivate init(_ kind: Kind, id: UInt64, range: ByteRange, memory: UInt64, message: [UInt8]) {
        (self.kind, self.id, self.range, self.memory) = (kind, id, range, memory)
        self.message = message
    }

    /// The frame as a request; throws when it is none.
    func request() throws(BlockError) -> TargetRequest {
        switch kind {
        case .write: .write(range, memory: memory)
        case .writeZeroes: .writeZeroes(range)
        case .read: .read(range, memory: memory)
        case .message: try decode(TargetRequest.self)
        case .done: throw Self.garbled("a reply where a request belongs")
        }
    }

    /// The frame as a reply; throws when it is none.
    func reply() throws(BlockError) -> TargetReply {
        switch kind {
        case .done: .done
        case .message: try decode(TargetReply.self)
        default: throw Self.garbled("a request where a reply belongs")
        }
    }

    func append(to bytes: inout [UInt8]) {
        func append(_ number: some FixedWidthInteger) {
            withUnsafeBytes(of: number.littleEndian) { bytes.append(contentsOf: $0) }
        }
        append(UInt32(message.count))
        append(kind.rawValue)
        append(id)
        append(range.offset)
        append(range.length)
        append(memory)
        bytes.append(contentsOf: message)
    }

    private static func encode(_ message: some Encodable) -> [UInt8] {
        do { return [UInt8](try JSONEncoder().encode(message)) } catch {
            preconditionFailure("a message is strings, numbers and enums, which can be encoded: \(error)")
        }
    }

    private func decode<Message: Decodable>(_ type: Message.Type) throws(BlockError) -> Message {
        do { return try JSONDecoder().decode(type, from: Data(message)) } catch {
            throw Self.garbled("\(error)")
        }
    }

    fileprivate static func garbled(_ why: String) -> BlockError {
        BlockError(.inputOutput, "The agent and a target's process do not understand each other: \(why)")
    }
}

/// Bytes as they arrive, and the frames that are in them.
struct TargetFrames: Sendable {
    private var bytes: [UInt8] = []
    private var position = 0

    mutating func add(_ arrived: UnsafeRawBufferPointer) {
        if position == bytes.count {
            bytes.removeAll(keepingCapacity: true)
            position = 0
        }
        bytes.append(contentsOf: arrived)
    }

    /// The next frame that is there as a whole; throws when what is there is none.
    mutating func next() throws(BlockError) -> TargetFrame? {
        guard bytes.count - position >= TargetFrame.headerSize else { return nil }
        let count = Int(number(UInt32.self, at: 0))
        guard count <= TargetFrame.bound, let kind = TargetFrame.Kind(rawValue: number(UInt32.self, at: 4))
        else { throw TargetFrame.garbled("a header that makes no sense") }
        let end = position + TargetFrame.headerSize + count
        guard bytes.count >= end else { return nil }
        let (offset, length) = (number(UInt64.self, at: 16), number(UInt64.self, at: 24))
        guard !offset.addingReportingOverflow(length).overflow else {
            throw TargetFrame.garbled("a range that ends beyond 64 bits")
        }
        let frame = TargetFrame(
            kind, id: number(UInt64.self, at: 8), range: ByteRange(offset: offset, length: length),
            memory: number(UInt64.self, at: 32),
            message: Array(bytes[position + TargetFrame.headerSize..<end]))
        position = end
        return frame
    }

    private func number<Number: FixedWidthInteger>(_ type: Number.Type, at offset: Int) -> Number {
        bytes.withUnsafeBytes {
            Number(littleEndian: $0.loadUnaligned(fromByteOffset: position + offset, as: Number.self))
        }
    }
}
