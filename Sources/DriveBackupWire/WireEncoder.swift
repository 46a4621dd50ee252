internal import CProtobufC

/// A message packed as far as its size: it can be written once its bytes have a place.
public struct WireEncoding: ~Copyable {
    /// How many bytes it takes.
    public let size: Int
    private let arena: WireArena
    private let message: UnsafePointer<ProtobufCMessage>

    init<M: WireMessage>(_ value: inout M) throws(WireError) {
        let arena = WireArena(capacity: WireArena.unlimited)
        guard let message = WireEncoder.makeStruct(M.descriptor, in: arena) else {
            throw WireError(.tooLarge, "there is no memory to encode it").in(M.messageName)
        }
        let failure = withUnsafePointer(to: arena) { arena -> WireError? in
            var encoder = WireEncoder(message, arena: arena)
            value.fields(&encoder)
            return encoder.failure
        }
        if let failure { throw failure.in(M.messageName) }
        self.arena = arena
        self.message = UnsafePointer(message)
        size = protobuf_c_message_get_packed_size(message)
    }

    /// Writes the message to the first `size` bytes of `buffer`, which has at least so many.
    public func write(into buffer: UnsafeMutableRawBufferPointer) {
        precondition(buffer.count >= size, "\(size) bytes do not fit into \(buffer.count)")
        guard size > 0, let start = buffer.assumingMemoryBound(to: UInt8.self).baseAddress else { return }
        let written = protobuf_c_message_pack(message, start)
        precondition(written == size, "libprotobuf-c wrote \(written) bytes and had announced \(size)")
    }
}

/// Fills the C struct that libprotobuf-c packs.
struct WireEncoder: FieldCoder {
    /// The first thing that could not be encoded.
    private(set) var failure: WireError?

    private let base: UnsafeMutableRawPointer
    private let arena: UnsafePointer<WireArena>
    private var layout: CStructLayout

    /// An empty C struct for a message; nil when there is no memory.
    static func makeStruct(
        _ descriptor: MessageDescriptor, in arena: borrowing WireArena
    ) -> UnsafeMutablePointer<ProtobufCMessage>? {
        guard let memory = arena.allocate(descriptor.message.pointee.sizeof_message) else { return nil }
        let message = memory.bindMemory(to: ProtobufCMessage.self, capacity: 1)
        protobuf_c_message_init(descriptor.message, message)
        return message
    }

    init(_ message: UnsafeMutablePointer<ProtobufCMessage>, arena: UnsafePointer<WireArena>) {
        base = UnsafeMutableRawPointer(message)
        self.arena = arena
        layout = CStructLayout(message.pointee.descriptor)
    }

    mutating func bool(_ number: UInt32, _ name: StaticString, _ value: inout Bool) {
        store(value ? 1 : 0 as protobuf_c_boolean, layout.field(number))
    }

    mutating func int32(_ number: UInt32, _ name: StaticString, _ value: inout Int32) {
        store(value, layout.field(number))
    }

    mutating func int64(_ number: UInt32, _ name: StaticString, _ value: inout Int64) {
        store(value, layout.field(number))
    }

    mutating func uint32(_ number: UInt32, _ name: StaticString, _ value: inout UInt32) {
        store(value, layout.field(number))
    }

    mutating func uint64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        store(value, layout.field(number))
    }

    mutating func fixed64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        store(value, layout.field(number))
    }

    mutating func string(_ number: UInt32, _ name: StaticString, _ value: inout String) {
        let field = layout.field(number)
        guard !value.isEmpty, let copy = copy(&value, name) else { return }
        store(copy, field)
    }

    mutating func bytes(_ number: UInt32, _ name: StaticString, _ value: inout [UInt8]) {
        let field = layout.field(number)
        guard !value.isEmpty, let copy = allocate(value.count, name) else { return }
        value.withUnsafeBytes {
            copy.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(copy), byteCount: $0.count)
        }
        let data = copy.bindMemory(to: UInt8.self, capacity: value.count)
        store(ProtobufCBinaryData(len: value.count, data: data), field)
    }

    mutating func enumeration<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ value: inout E) {
        store(value.rawValue, layout.field(number))
    }

    mutating func message<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        let field = layout.field(number)
        guard value != nil else { return }
        store(pack(&value, name), field)
    }

    mutating func oneof(_: UInt32, is current: UInt32) -> UInt32? { current }

    mutating func oneofMessage<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        let field = layout.field(number)
        guard value != nil else { return }
        store(pack(&value, name), field)
        base.storeBytes(of: number, toByteOffset: Int(field.pointee.quantifier_offset), as: UInt32.self)
    }

    mutating func strings(_ number: UInt32, _ name: StaticString, _ values: inout [String]) {
        let field = layout.field(number)
        guard let start = array(of: UnsafeMutablePointer<CChar>?.self, values.count, field, name) else {
            return
        }
        for index in values.indices { (start + index).initialize(to: copy(&values[index], name)) }
    }

    mutating func enumerations<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ values: inout [E]) {
        let field = layout.field(number)
        guard let start = array(of: Int32.self, values.count, field, name) else { return }
        for (index, value) in values.enumerated() { (start + index).initialize(to: value.rawValue) }
    }

    mutating func messages<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ values: inout [M]) {
        let field = layout.field(number)
        let pointer = UnsafeMutablePointer<ProtobufCMessage>?.self
        guard let start = array(of: pointer, values.count, field, name) else { return }
        for (index, value) in values.enumerated() {
            var value: M? = value
            (start + index).initialize(to: pack(&value, name))
        }
    }

    // SAFETY: of the stores: as for WireDecoder's loads; the struct was made for the same descriptor.
    private func store<T>(_ value: T, _ field: UnsafePointer<ProtobufCFieldDescriptor>) {
        base.storeBytes(of: value, toByteOffset: Int(field.pointee.offset), as: T.self)
    }

    private mutating func allocate(_ size: Int, _ name: StaticString) -> UnsafeMutableRawPointer? {
        guard failure == nil else { return nil }
        if let memory = arena.pointee.allocate(size) { return memory }
        failure = WireError(.tooLarge, field: "\(name)", "there is no memory to encode it")
        return nil
    }

    /// A C array for `count` elements, entered into the struct; nil when there are none, or no memory.
    private mutating func array<T>(
        of type: T.Type, _ count: Int, _ field: UnsafePointer<ProtobufCFieldDescriptor>, _ name: StaticString
    ) -> UnsafeMutablePointer<T>? {
        guard count > 0, let memory = allocate(count * MemoryLayout<T>.stride, name) else { return nil }
        let start = memory.bindMemory(to: T.self, capacity: count)
        store(start, field)
        base.storeBytes(of: count, toByteOffset: Int(field.pointee.quantifier_offset), as: Int.self)
        return start
    }

    /// The string as C has it.
    private mutating func copy(_ value: inout String, _ name: StaticString) -> UnsafeMutablePointer<CChar>? {
        let count = value.utf8.count
        guard let memory = allocate(count + 1, name) else { return nil }
        let hasNUL = value.withUTF8 { text in
            if let start = text.baseAddress { memory.copyMemory(from: start, byteCount: count) }
            return text.contains(0)
        }
        if hasNUL {
            failure = WireError(.invalidValue, field: "\(name)", "the text contains a NUL character")
        }
        return memory.bindMemory(to: CChar.self, capacity: count + 1)
    }

    private mutating func pack<M: WireMessage>(
        _ value: inout M?, _ name: StaticString
    ) -> UnsafeMutablePointer<ProtobufCMessage>? {
        guard failure == nil else { return nil }
        guard let message = Self.makeStruct(M.descriptor, in: arena.pointee) else {
            failure = WireError(.tooLarge, field: "\(name)", "there is no memory to encode it")
            return nil
        }
        var encoder = WireEncoder(message, arena: arena)
        value?.fields(&encoder)
        failure = encoder.failure?.within("\(name)")
        return message
    }
}
