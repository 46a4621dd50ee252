/// A message of the schema as a Swift value.
///
/// The generated types conform to it. Each lists its fields once, in `fields`; decoding, encoding, JSON and the tests
/// walk that list.
public protocol WireMessage: Sendable, Hashable {
    /// The message with all fields unset: zero, empty, absent.
    init()

    /// The full name in the schema: `drivebackup.v1.Job`.
    static var messageName: String { get }

    /// What libprotobuf-c knows of the message.
    static var descriptor: MessageDescriptor { get }

    /// Shows each field to `coder`, in the order of the schema.
    mutating func fields<Coder: FieldCoder>(_ coder: inout Coder)

    // These have one implementation, below. They are requirements so that each message gets it compiled for itself:
    // generic code that does not know the message finds it in the conformance, several times as fast.

    /// The message that `bytes` encode.
    ///
    /// Everything that libprotobuf-c would let pass is checked first (see `WireCheck`), so what is returned is well
    /// formed; whether the values make sense is for the caller to say. Fields that the schema does not know are
    /// skipped and forgotten. `bytes` are not referred to after the call.
    static func decode(_ bytes: UnsafeRawBufferPointer, limits: WireLimits) throws(WireError) -> Self

    /// The message's bytes. Fails if a string contains NUL.
    func encode() throws(WireError) -> [UInt8]
}

extension WireMessage {
    public static func decode(
        _ bytes: UnsafeRawBufferPointer, limits: WireLimits
    ) throws(WireError) -> Self {
        var message = Self()
        let descriptor = Self.descriptor
        do throws(WireError) {
            let fields = try WireCheck.check(bytes, as: descriptor, limits: limits)
            // In proportion to the bytes, for texts and the like, and to the fields: an empty message within this one
            // has two bytes on the wire and a struct of some hundred in memory.
            let arena = WireArena(capacity: bytes.count * 8 + fields * 512 + 65536)
            var decoder = try WireDecoder(unpacking: bytes, as: descriptor, in: arena)
            message.fields(&decoder)
        } catch {
            throw error.in(Self.messageName)
        }
        return message
    }

    /// The message that `bytes` encode.
    public static func decode(_ bytes: [UInt8], limits: WireLimits = .request) throws(WireError) -> Self {
        try bytes.span.withUnsafeBytes { (buffer) throws(WireError) in try decode(buffer, limits: limits) }
    }

    /// The message made ready to be written somewhere. Fails if a string contains NUL.
    public func encoding() throws(WireError) -> WireEncoding {
        var copy = self
        return try WireEncoding(&copy)
    }

    public func encode() throws(WireError) -> [UInt8] {
        let encoding = try encoding()
        return [UInt8](unsafeUninitializedCapacity: encoding.size) { buffer, count in
            encoding.write(into: UnsafeMutableRawBufferPointer(buffer))
            count = encoding.size
        }
    }
}

/// A message's descriptor of libprotobuf-c.
public struct MessageDescriptor: @unchecked Sendable {
    // SAFETY: (of Sendable) it points at a constant of the program, which nobody writes.
    package let pointer: UnsafeRawPointer

    package init(_ pointer: UnsafeRawPointer) { self.pointer = pointer }
}

/// What a decoder accepts.
public struct WireLimits: Sendable {
    /// How many fields may be in the message and in all messages within it; elements of repeated fields count.
    public var maximumFields: Int
    /// How deep messages may be nested.
    public var maximumDepth: Int
    /// Whether an enum's value that the schema does not know is an error.
    public var refusesUnknownEnumValues: Bool

    public init(maximumFields: Int = 65536, maximumDepth: Int = 32, refusesUnknownEnumValues: Bool = true) {
        self.maximumFields = maximumFields
        self.maximumDepth = maximumDepth
        self.refusesUnknownEnumValues = refusesUnknownEnumValues
    }

    /// For what a client sends: what is not understood must not be acted on.
    public static let request = WireLimits()
    /// For what an agent answers: a newer one may know more values than this client, which shows their numbers; and a page of
    /// jobs, each with all the ranges that it lacks, has many fields.
    public static let response = WireLimits(maximumFields: 1 << 19, refusesUnknownEnumValues: false)
}
