internal import CProtobufC

/// Checks the bytes of a message against its descriptor before libprotobuf-c sees them.
///
/// The library is lenient where we must not be: it takes any bytes as a string, any number for an enum, a field with
/// the wrong wire type as an unknown one, and as many fields as there are. Here all of that is an error that names the
/// field. Fields that the schema does not know are let through if they are well formed (groups never are: proto3 has
/// none). Depth is bounded by the schema, which has no cycles, and by the limit besides.
struct WireCheck {
    private let limits: WireLimits
    private var fieldsLeft: Int

    /// How many fields `bytes` have, in all messages within, if they are a valid encoding of the message.
    static func check(
        _ bytes: UnsafeRawBufferPointer, as descriptor: MessageDescriptor, limits: WireLimits
    ) throws(WireError) -> Int {
        var check = WireCheck(limits: limits, fieldsLeft: limits.maximumFields)
        try check.message(bytes, descriptor.message, depth: 1)
        return limits.maximumFields - check.fieldsLeft
    }

    private mutating func message(
        _ bytes: UnsafeRawBufferPointer, _ descriptor: UnsafePointer<ProtobufCMessageDescriptor>, depth: Int
    ) throws(WireError) {
        guard depth <= limits.maximumDepth else {
            throw WireError(.tooLarge, "messages are nested more than \(limits.maximumDepth) deep")
        }
        var input = WireInput(bytes)
        while !input.isAtEnd {
            let (number, type) = try input.tag()
            try countField()
            guard let field = Self.field(number, of: descriptor) else {
                do throws(WireError) {
                    try input.skip(type)
                } catch { throw error.within("field \(number)") }
                continue
            }
            do throws(WireError) {
                try self.field(field, type, &input, depth: depth)
            } catch { throw error.within(String(cString: field.pointee.name)) }
        }
    }

    private mutating func field(
        _ field: UnsafePointer<ProtobufCFieldDescriptor>, _ type: WireType, _ input: inout WireInput,
        depth: Int
    ) throws(WireError) {
        let expected = WireType(of: field.pointee.type)
        if type == expected {
            switch type {
            case .varint: try value(try input.varint(), of: field)
            case .fixed64, .fixed32: try input.skip(type)
            case .lengthDelimited: try content(try input.lengthDelimited(), of: field, depth: depth)
            }
        } else if type == .lengthDelimited, field.pointee.label == PROTOBUF_C_LABEL_REPEATED {
            try packed(try input.lengthDelimited(), expected, of: field)
        } else {
            throw WireError(.malformed, "it is encoded as \(type), its type needs \(expected)")
        }
    }

    private mutating func packed(
        _ bytes: UnsafeRawBufferPointer, _ type: WireType, of field: UnsafePointer<ProtobufCFieldDescriptor>
    ) throws(WireError) {
        var input = WireInput(bytes)
        while !input.isAtEnd {
            try countField()
            if type == .varint { try value(try input.varint(), of: field) } else { try input.skip(type) }
        }
    }

    private mutating func content(
        _ bytes: UnsafeRawBufferPointer, of field: UnsafePointer<ProtobufCFieldDescriptor>, depth: Int
    ) throws(WireError) {
        switch field.pointee.type {
        case PROTOBUF_C_TYPE_STRING: try text(bytes)
        case PROTOBUF_C_TYPE_MESSAGE:
            guard let descriptor = field.pointee.descriptor else { return }
            try message(
                bytes, descriptor.assumingMemoryBound(to: ProtobufCMessageDescriptor.self), depth: depth + 1)
        default: break
        }
    }

    private func text(_ bytes: UnsafeRawBufferPointer) throws(WireError) {
        guard !bytes.contains(0) else { throw WireError(.invalidValue, "the text contains a NUL character") }
        do {
            _ = try UTF8Span(validating: bytes.bindMemory(to: UInt8.self).span)
        } catch {
            throw WireError(
                .invalidValue, "the text is not valid UTF-8 at byte \(error.byteOffsets.lowerBound)")
        }
    }

    private func value(
        _ value: UInt64, of field: UnsafePointer<ProtobufCFieldDescriptor>
    ) throws(WireError) {
        guard field.pointee.type == PROTOBUF_C_TYPE_ENUM, limits.refusesUnknownEnumValues,
            let descriptor = field.pointee.descriptor
        else { return }
        // A negative value comes sign-extended to 64 bits.
        let number = Int64(bitPattern: value)
        let values = descriptor.assumingMemoryBound(to: ProtobufCEnumDescriptor.self).pointee
        let isKnown = UnsafeBufferPointer(start: values.values, count: Int(values.n_values))
            .contains { Int64($0.value) == number }
        guard isKnown else { throw WireError(.invalidValue, "unknown value \(number)") }
    }

    private mutating func countField() throws(WireError) {
        guard fieldsLeft > 0 else {
            throw WireError(.tooLarge, "the message has more than \(limits.maximumFields) fields")
        }
        fieldsLeft -= 1
    }

    private static func field(
        _ number: UInt32, of descriptor: UnsafePointer<ProtobufCMessageDescriptor>
    ) -> UnsafePointer<ProtobufCFieldDescriptor>? {
        let fields = UnsafeBufferPointer(
            start: descriptor.pointee.fields, count: Int(descriptor.pointee.n_fields))
        guard let start = fields.baseAddress else { return nil }
        // Mostly they are numbered from 1 on without gaps.
        if number > 0, number <= fields.count, fields[Int(number) - 1].id == number {
            return start + Int(number) - 1
        }
        return fields.firstIndex { $0.id == number }.map { start + $0 }
    }
}
