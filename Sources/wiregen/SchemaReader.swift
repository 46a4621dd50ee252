internal import CDescriptor
internal import CProtobufC

/// Reads a `google.protobuf.FileDescriptorSet`, as `protoc --descriptor_set_out` writes it, through libprotobuf-c.
///
/// Only what the wire module can carry is let through: everything else is an error that says what is missing, so that
/// a new kind of field cannot slip into the schema unnoticed.
struct SchemaReader {
    static func read(_ bytes: [UInt8]) throws -> Schema {
        let unpacked = bytes.withUnsafeBufferPointer {
            google__protobuf__file_descriptor_set__unpack(nil, $0.count, $0.baseAddress)
        }
        guard let set = unpacked else { throw GeneratorError("The descriptor set cannot be decoded.") }
        // The process ends soon: the tree is not freed.
        var schema = Schema()
        for file in list(set.pointee.file, set.pointee.n_file) {
            schema.files.append(try FileReader(file).read())
        }
        return schema
    }
}

/// The elements of a C array of pointers to messages.
private func list<T>(_ start: UnsafeMutablePointer<UnsafeMutablePointer<T>?>?, _ count: Int) -> [T] {
    UnsafeBufferPointer(start: start, count: count).compactMap { $0?.pointee }
}

private func text(_ string: UnsafePointer<CChar>?) -> String {
    string.map { String(cString: $0) } ?? ""
}

private struct FileReader {
    let file: Google__Protobuf__FileDescriptorProto
    let comments: [[Int32]: String]
    let package: String

    init(_ file: Google__Protobuf__FileDescriptorProto) {
        self.file = file
        package = text(file.package)
        var comments: [[Int32]: String] = [:]
        if let info = file.source_code_info?.pointee {
            for location in list(info.location, info.n_location) {
                let path = Array(UnsafeBufferPointer(start: location.path, count: location.n_path))
                var comment = text(location.leading_comments)
                // A file's comment stands over `syntax`, often apart from it by an empty line.
                if path == [12] {
                    let detached = UnsafeBufferPointer(
                        start: location.leading_detached_comments, count: location.n_leading_detached_comments
                    )
                    comment = detached.map { text($0) }.joined() + comment
                }
                if !comment.isEmpty { comments[path] = comment }
            }
        }
        self.comments = comments
    }

    func read() throws -> SchemaFile {
        guard text(file.syntax) == "proto3" else {
            throw GeneratorError("\(text(file.name)) is not proto3.")
        }
        var result = SchemaFile(path: text(file.name), package: package, comment: comments[[12]] ?? "")
        for (index, message) in list(file.message_type, file.n_message_type).enumerated() {
            result.messages.append(try self.message(message, at: [4, Int32(index)]))
        }
        for (index, each) in list(file.enum_type, file.n_enum_type).enumerated() {
            result.enums.append(enumeration(each, at: [5, Int32(index)]))
        }
        for (index, each) in list(file.service, file.n_service).enumerated() {
            result.services.append(try service(each, at: [6, Int32(index)]))
        }
        return result
    }

    private func message(_ message: Google__Protobuf__DescriptorProto, at path: [Int32]) throws
        -> SchemaMessage
    {
        let name = text(message.name)
        guard message.n_nested_type == 0, message.n_enum_type == 0 else {
            throw GeneratorError(
                "\(package).\(name) has nested types or a map; declare types at the top level.")
        }
        var result = SchemaMessage(name: name, fullName: "\(package).\(name)", comment: comments[path] ?? "")
        result.oneofs = list(message.oneof_decl, message.n_oneof_decl).map { text($0.name) }
        for (index, each) in list(message.field, message.n_field).enumerated() {
            result.fields.append(try field(each, of: result.fullName, at: path + [2, Int32(index)]))
        }
        return result
    }

    private func field(
        _ field: Google__Protobuf__FieldDescriptorProto, of message: String, at path: [Int32]
    ) throws -> SchemaField {
        let name = text(field.name)
        guard field.proto3_optional == 0 else {
            throw GeneratorError(
                "\(message).\(name) is `optional`; choose a schema in which zero or empty means not given.")
        }
        let isRepeated = field.label == GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__LABEL__LABEL_REPEATED
        let kind = try kind(of: field, named: "\(message).\(name)")
        let oneof = field.has_oneof_index != 0 ? Int(field.oneof_index) : nil
        if oneof != nil, case .message = kind {
        } else if oneof != nil {
            throw GeneratorError("\(message).\(name): only messages can be in a oneof.")
        }
        if isRepeated {
            switch kind {
            case .string, .message, .enumeration: break
            default:
                throw GeneratorError("\(message).\(name): repeated fields of this type are not supported.")
            }
        }
        return SchemaField(
            name: name, number: Int(field.number), kind: kind, isRepeated: isRepeated, oneof: oneof,
            comment: comments[path] ?? "")
    }

    private func kind(
        of field: Google__Protobuf__FieldDescriptorProto, named name: String
    ) throws -> SchemaField.Kind {
        let typeName = String(text(field.type_name).drop { $0 == "." })
        switch field.type {
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_BOOL: return .bool
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_INT32: return .int32
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_INT64: return .int64
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_UINT32: return .uint32
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_UINT64: return .uint64
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_FIXED64: return .fixed64
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_STRING: return .string
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_BYTES: return .bytes
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_ENUM: return .enumeration(typeName)
        case GOOGLE__PROTOBUF__FIELD_DESCRIPTOR_PROTO__TYPE__TYPE_MESSAGE: return .message(typeName)
        default: throw GeneratorError("\(name): fields of this type are not supported.")
        }
    }

    private func enumeration(_ each: Google__Protobuf__EnumDescriptorProto, at path: [Int32]) -> SchemaEnum {
        let name = text(each.name)
        var result = SchemaEnum(name: name, fullName: "\(package).\(name)", comment: comments[path] ?? "")
        for (index, value) in list(each.value, each.n_value).enumerated() {
            result.values.append(
                SchemaEnum.Value(
                    name: text(value.name), number: value.number,
                    comment: comments[path + [2, Int32(index)]] ?? ""))
        }
        return result
    }

    private func service(
        _ each: Google__Protobuf__ServiceDescriptorProto, at path: [Int32]
    ) throws -> SchemaService {
        let name = text(each.name)
        var result = SchemaService(name: name, fullName: "\(package).\(name)", comment: comments[path] ?? "")
        for (index, method) in list(each.method, each.n_method).enumerated() {
            guard method.client_streaming == 0 else {
                throw GeneratorError(
                    "\(result.fullName)/\(text(method.name)) has a client stream: not supported.")
            }
            result.methods.append(
                SchemaService.Method(
                    name: text(method.name),
                    request: String(text(method.input_type).drop { $0 == "." }),
                    response: String(text(method.output_type).drop { $0 == "." }),
                    isServerStreaming: method.server_streaming != 0,
                    comment: comments[path + [2, Int32(index)]] ?? ""))
        }
        return result
    }
}
