internal import CProtobufC

/// Where the fields of a message are in its C struct: libprotobuf-c's descriptor, walked in step with the generated
/// list of fields.
struct CStructLayout {
    private let fields: UnsafeBufferPointer<ProtobufCFieldDescriptor>
    private var next = 0

    init(_ descriptor: UnsafePointer<ProtobufCMessageDescriptor>) {
        fields = UnsafeBufferPointer(
            start: descriptor.pointee.fields, count: Int(descriptor.pointee.n_fields))
    }

    /// The field with `number`. The descriptor has its fields by number, the schema mostly lists them so.
    mutating func field(_ number: UInt32) -> UnsafePointer<ProtobufCFieldDescriptor> {
        for _ in 0..<fields.count {
            if next >= fields.count { next = 0 }
            let index = next
            next += 1
            // SAFETY: the index is within the descriptor's table, which is a constant of the program.
            if fields[index].id == number, let start = fields.baseAddress { return start + index }
        }
        preconditionFailure("the generated Swift and C do not match: run tools/generate (field \(number))")
    }
}

extension MessageDescriptor {
    /// The descriptor as libprotobuf-c declares it.
    var message: UnsafePointer<ProtobufCMessageDescriptor> {
        pointer.assumingMemoryBound(to: ProtobufCMessageDescriptor.self)
    }
}
