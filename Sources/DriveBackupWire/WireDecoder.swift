internal import CProtobufC

/// Copies a message out of the C struct into which libprotobuf-c has unpacked it.
///
/// The struct is in an arena, and neither it nor the decoder leaves `WireMessage.decode`.
struct WireDecoder: FieldCoder {
    private let base: UnsafeRawPointer
    private var layout: CStructLayout

    /// Unpacks `bytes`, which `WireCheck` has accepted.
    init(
        unpacking bytes: UnsafeRawBufferPointer, as descriptor: MessageDescriptor,
        in arena: borrowing WireArena
    ) throws(WireError) {
        let start = bytes.assumingMemoryBound(to: UInt8.self).baseAddress
        guard
            let message = protobuf_c_message_unpack(descriptor.message, arena.cAllocator, bytes.count, start)
        else { throw WireError(.malformed, "the message could not be unpacked") }
        self.init(message)
    }

    private init(_ message: UnsafePointer<ProtobufCMessage>) {
        base = UnsafeRawPointer(message)
        layout = CStructLayout(message.pointee.descriptor)
    }

    mutating func bool(_ number: UInt32, _ name: StaticString, _ value: inout Bool) {
        value = load(layout.field(number), as: protobuf_c_boolean.self) != 0
    }

    mutating func int32(_ number: UInt32, _ name: StaticString, _ value: inout Int32) {
        value = load(layout.field(number), as: Int32.self)
    }

    mutating func int64(_ number: UInt32, _ name: StaticString, _ value: inout Int64) {
        value = load(layout.field(number), as: Int64.self)
    }

    mutating func uint32(_ number: UInt32, _ name: StaticString, _ value: inout UInt32) {
        value = load(layout.field(number), as: UInt32.self)
    }

    mutating func uint64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        value = load(layout.field(number), as: UInt64.self)
    }

    mutating func fixed64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        value = load(layout.field(number), as: UInt64.self)
    }

    mutating func string(_ number: UInt32, _ name: StaticString, _ value: inout String) {
        value = Self.string(load(layout.field(number), as: UnsafePointer<CChar>?.self))
    }

    mutating func bytes(_ number: UInt32, _ name: StaticString, _ value: inout [UInt8]) {
        let data = load(layout.field(number), as: ProtobufCBinaryData.self)
        value = Array(UnsafeBufferPointer(start: data.data, count: data.data == nil ? 0 : data.len))
    }

    mutating func enumeration<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ value: inout E) {
        value = E(rawValue: load(layout.field(number), as: Int32.self))
    }

    mutating func message<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        value = load(layout.field(number), as: UnsafePointer<ProtobufCMessage>?.self).map { Self.message($0) }
    }

    mutating func oneof(_ first: UInt32, is _: UInt32) -> UInt32? {
        // All fields of a oneof have one place for the number of that which was set.
        base.load(fromByteOffset: Int(layout.field(first).pointee.quantifier_offset), as: UInt32.self)
    }

    mutating func oneofMessage<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        let message = load(layout.field(number), as: UnsafePointer<ProtobufCMessage>?.self)
        value = message.map { Self.message($0) } ?? M()
    }

    mutating func strings(_ number: UInt32, _ name: StaticString, _ values: inout [String]) {
        values = elements(layout.field(number), of: UnsafePointer<CChar>?.self).map { Self.string($0) }
    }

    mutating func enumerations<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ values: inout [E]) {
        values = elements(layout.field(number), of: Int32.self).map { E(rawValue: $0) }
    }

    mutating func messages<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ values: inout [M]) {
        let pointers = elements(layout.field(number), of: UnsafePointer<ProtobufCMessage>?.self)
        if pointers.isEmpty, values.isEmpty { return }
        values = pointers.compactMap { pointer in pointer.map { Self.message($0) } }
    }

    // SAFETY: of the loads: the descriptor gives the offsets of the very struct that libprotobuf-c made for it, and
    // the generated list asks for the type that the schema says.
    private func load<T>(_ field: UnsafePointer<ProtobufCFieldDescriptor>, as type: T.Type) -> T {
        base.load(fromByteOffset: Int(field.pointee.offset), as: type)
    }

    private func elements<T>(
        _ field: UnsafePointer<ProtobufCFieldDescriptor>, of type: T.Type
    ) -> UnsafeBufferPointer<T> {
        let count = base.load(fromByteOffset: Int(field.pointee.quantifier_offset), as: Int.self)
        let start = load(field, as: UnsafePointer<T>?.self)
        return UnsafeBufferPointer(start: start, count: start == nil ? 0 : count)
    }

    private static func string(_ pointer: UnsafePointer<CChar>?) -> String {
        pointer.map { String(cString: $0) } ?? ""
    }

    private static func message<M: WireMessage>(_ pointer: UnsafePointer<ProtobufCMessage>) -> M {
        var decoder = WireDecoder(pointer)
        var message = M()
        message.fields(&decoder)
        return message
    }
}
