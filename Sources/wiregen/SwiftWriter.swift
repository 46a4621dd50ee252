/// Writes the Swift side of one schema file.
struct SwiftWriter {
    let schema: Schema
    let names: Names
    /// The C module with the descriptors.
    let descriptorModule: String
    /// The module with `WireMessage`, unless the generated files are in it.
    let runtimeModule: String?

    func write(_ file: SchemaFile) throws -> String {
        var out = SourceText()
        out.line("// swift-format-ignore-file")
        out.line("// Generated from proto/\(file.path) by tools/generate. Never edited by hand.")
        out.line()
        out.line("internal import \(descriptorModule)")
        if let runtimeModule { out.line("public import \(runtimeModule)") }

        let namespace = names.namespaces[file.package]
        if let namespace {
            out.line()
            out.open("extension \(namespace) {")
        }
        for each in file.enums { try enumeration(each, in: &out) }
        for each in file.messages { try message(each, in: &out) }
        if namespace != nil { out.close() }
        for each in file.services { service(each, in: &out) }
        return out.text
    }

    // MARK: Enums

    private func enumeration(_ each: SchemaEnum, in out: inout SourceText) throws {
        let prefix = names.valuePrefix(each.name)
        let values: [(name: String, value: SchemaEnum.Value)] = try each.values.map { value in
            guard value.name.hasPrefix(prefix) else {
                throw GeneratorError(
                    "\(each.fullName): the name of \(value.name) does not begin with \(prefix).")
            }
            return (String(value.name.dropFirst(prefix.count)).lowercased(), value)
        }
        out.line()
        out.docs(each.comment, orElse: "`\(each.fullName)`.")
        out.open("public struct \(each.name): WireEnum {")
        out.line("public let rawValue: Int32")
        out.line()
        out.line("public init(rawValue: Int32) { self.rawValue = rawValue }")
        out.line()
        for (name, value) in values {
            out.docs(value.comment)
            out.line("public static let \(names.identifier(name)) = Self(rawValue: \(value.number))")
        }
        out.line()
        let list = values.map { "." + names.identifier($0.name) }
        out.line("public static let allCases: [Self] = [")
        for each in list { out.line("    \(each),") }
        out.line("]")
        out.line()
        out.open("public var knownName: String? {")
        out.line("switch rawValue {")
        for (name, value) in values { out.line("case \(value.number): \"\(name)\"") }
        out.line("default: nil")
        out.line("}")
        out.close()
        out.close()
    }

    // MARK: Messages

    private func message(_ message: SchemaMessage, in out: inout SourceText) throws {
        out.line()
        out.docs(message.comment, orElse: "`\(message.fullName)`.")
        out.open("public struct \(message.name): WireMessage {")
        for (index, oneof) in message.oneofs.enumerated() { oneofType(message, index, oneof, in: &out) }
        properties(message, in: &out)
        initialisers(message, in: &out)
        out.line()
        out.line("public static let messageName = \"\(message.fullName)\"")
        out.line()
        out.open("public static var descriptor: MessageDescriptor {")
        out.line("MessageDescriptor(\(names.accessor(message.fullName))())")
        out.close()
        out.line()
        out.open("public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {")
        for field in message.fields { fieldCall(message, field, in: &out) }
        out.close()
        for (index, oneof) in message.oneofs.enumerated() { oneofNumber(message, index, oneof, in: &out) }
        for field in message.fields where field.oneof != nil { oneofProperty(message, field, in: &out) }
        out.close()
    }

    /// What `fields` does for a field. Of those of a oneof it asks for the right one: each takes a copy of the value.
    private func fieldCall(_ message: SchemaMessage, _ field: SchemaField, in out: inout SourceText) {
        let call =
            "coder.\(coderCall(field))(\(field.number), \"\(field.name)\", &\(names.identifier(field.name)))"
        guard let index = field.oneof else { return out.line(call) }
        let number = numberName(message.oneofs[index])
        if message.fields.first(where: { $0.oneof == index })?.number == field.number {
            out.line("let \(number) = coder.oneof(\(field.number), is: \(number))")
        }
        out.line("if \(number) ?? \(field.number) == \(field.number) {")
        out.line("    \(call)")
        out.line("}")
    }

    /// No field of a schema is called so.
    private func numberName(_ oneof: String) -> String { "_" + names.identifier(oneof + "_number") }

    private func oneofNumber(
        _ message: SchemaMessage, _ index: Int, _ oneof: String, in out: inout SourceText
    ) {
        out.line()
        out.docs("The number of the field that `\(oneof)` is; 0 for none.")
        out.open("private var \(numberName(oneof)): UInt32 {")
        out.line("switch \(names.identifier(oneof)) {")
        for field in message.fields where field.oneof == index {
            out.line("case .\(names.identifier(field.name))?: \(field.number)")
        }
        out.line("case nil: 0")
        out.line("}")
        out.close()
    }

    /// The stored properties: a oneof is one, at the place of its first field.
    private func stored(_ message: SchemaMessage) -> [(
        name: String, type: String, initial: String, comment: String
    )] {
        var result: [(name: String, type: String, initial: String, comment: String)] = []
        var seen: Set<Int> = []
        for field in message.fields {
            if let oneof = field.oneof {
                if seen.insert(oneof).inserted {
                    let name = message.oneofs[oneof]
                    result.append((names.identifier(name), names.upperCamel(name) + "?", "nil", ""))
                }
            } else {
                let (type, initial) = propertyType(field)
                result.append((names.identifier(field.name), type, initial, field.comment))
            }
        }
        return result
    }

    private func properties(_ message: SchemaMessage, in out: inout SourceText) {
        for property in stored(message) {
            out.docs(property.comment)
            out.line("public var \(property.name): \(property.type) = \(property.initial)")
        }
        if !message.fields.isEmpty { out.line() }
    }

    private func initialisers(_ message: SchemaMessage, in out: inout SourceText) {
        out.line("public init() {}")
        let properties = stored(message)
        guard !properties.isEmpty else { return }
        out.line()
        out.line("public init(")
        for (index, property) in properties.enumerated() {
            let comma = index + 1 < properties.count ? "," : ""
            out.line("    \(property.name): \(property.type) = \(property.initial)\(comma)")
        }
        out.open(") {")
        for property in properties { out.line("self.\(property.name) = \(property.name)") }
        out.close()
    }

    private func oneofType(_ message: SchemaMessage, _ index: Int, _ oneof: String, in out: inout SourceText)
    {
        out.docs("What `\(oneof)` of `\(message.name)` can be.")
        out.open("public enum \(names.upperCamel(oneof)): Sendable, Hashable {")
        for field in message.fields where field.oneof == index {
            out.docs(field.comment)
            out.line("case \(names.identifier(field.name))(\(elementType(field).base))")
        }
        out.close()
        out.line()
    }

    private func oneofProperty(_ message: SchemaMessage, _ field: SchemaField, in out: inout SourceText) {
        guard let index = field.oneof else { return }
        let oneof = names.identifier(message.oneofs[index])
        let name = names.identifier(field.name)
        out.line()
        out.docs(
            "`\(message.oneofs[index])` if it is `\(field.name)`. Setting nil clears it only if it is that.")
        out.open("public var \(name): \(elementType(field).base)? {")
        out.open("get {")
        out.line("if case .\(name)(let value)? = \(oneof) { value } else { nil }")
        out.close()
        out.open("set {")
        out.open("if let newValue {")
        out.line("\(oneof) = .\(name)(newValue)")
        out.reopen("} else if case .\(name)? = \(oneof) {")
        out.line("\(oneof) = nil")
        out.close()
        out.close()
        out.close()
    }

    private func propertyType(_ field: SchemaField) -> (type: String, initial: String) {
        let (base, initial) = elementType(field)
        if field.isRepeated { return ("[\(base)]", "[]") }
        if case .message = field.kind { return (base + "?", "nil") }
        return (base, initial)
    }

    private func elementType(_ field: SchemaField) -> (base: String, initial: String) {
        switch field.kind {
        case .bool: ("Bool", "false")
        case .int32: ("Int32", "0")
        case .int64: ("Int64", "0")
        case .uint32: ("UInt32", "0")
        case .uint64, .fixed64: ("UInt64", "0")
        case .string: ("String", "\"\"")
        case .bytes: ("[UInt8]", "[]")
        case .message(let name): (names.swiftType(name), "nil")
        case .enumeration(let name): (names.swiftType(name), zero(of: name))
        }
    }

    private func zero(of enumName: String) -> String {
        guard let each = schema.enums[enumName], let zero = each.values.first(where: { $0.number == 0 })
        else {
            return "\(names.swiftType(enumName))(rawValue: 0)"
        }
        return "." + names.identifier(String(zero.name.dropFirst(names.valuePrefix(each.name).count)))
    }

    private func coderCall(_ field: SchemaField) -> String {
        if field.oneof != nil { return "oneofMessage" }
        return switch field.kind {
        case .bool: "bool"
        case .int32: "int32"
        case .int64: "int64"
        case .uint32: "uint32"
        case .uint64: "uint64"
        case .fixed64: "fixed64"
        case .bytes: "bytes"
        case .string: field.isRepeated ? "strings" : "string"
        case .enumeration: field.isRepeated ? "enumerations" : "enumeration"
        case .message: field.isRepeated ? "messages" : "message"
        }
    }

    // MARK: Services

    private func service(_ service: SchemaService, in out: inout SourceText) {
        out.line()
        out.docs(service.comment, orElse: "The methods of `\(service.fullName)`.")
        out.open("public enum \(service.name)Methods {")
        for method in service.methods {
            out.docs(method.comment)
            let types = "<\(names.swiftType(method.request)), \(names.swiftType(method.response))>"
            out.line("public static let \(names.methodIdentifier(method.name)) = RPCMethod\(types)(")
            out.line(
                "    \"\(service.fullName)/\(method.name)\", isServerStreaming: \(method.isServerStreaming))")
        }
        out.close()
    }
}
