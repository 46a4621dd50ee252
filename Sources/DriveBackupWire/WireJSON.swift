extension WireMessage {
    /// The message as one line of JSON.
    ///
    /// Fields have their names in the schema, and its order. Scalars, strings and lists are always there, also when
    /// they are zero or empty; absent messages and enums that are unspecified are left out, and of a oneof only what
    /// is set is there. Integers are numbers, enums their `jsonName` (a number if the schema does not know the value),
    /// bytes are base64.
    public func json() -> String {
        var out: [UInt8] = []
        appendJSON(to: &out)
        return String(decoding: out, as: UTF8.self)
    }

    /// Appends the JSON of `json()` in UTF-8.
    public func appendJSON(to out: inout [UInt8]) {
        var copy = self
        var writer = JSONWriter(out)
        out = []
        writer.object(&copy)
        out = writer.out
    }
}

/// Prints a message's fields as the members of a JSON object.
struct JSONWriter: FieldCoder {
    private(set) var out: [UInt8]
    private var needsComma = false

    init(_ out: [UInt8]) { self.out = out }

    mutating func object<M: WireMessage>(_ message: inout M) {
        let outer = needsComma
        needsComma = false
        out.append(UInt8(ascii: "{"))
        message.fields(&self)
        out.append(UInt8(ascii: "}"))
        needsComma = outer
    }

    mutating func bool(_ number: UInt32, _ name: StaticString, _ value: inout Bool) {
        key(name)
        append(value ? "true" : "false")
    }

    mutating func int32(_ number: UInt32, _ name: StaticString, _ value: inout Int32) {
        key(name)
        append(String(value))
    }

    mutating func int64(_ number: UInt32, _ name: StaticString, _ value: inout Int64) {
        key(name)
        append(String(value))
    }

    mutating func uint32(_ number: UInt32, _ name: StaticString, _ value: inout UInt32) {
        key(name)
        append(String(value))
    }

    mutating func uint64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        key(name)
        append(String(value))
    }

    mutating func fixed64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        key(name)
        append(String(value))
    }

    mutating func string(_ number: UInt32, _ name: StaticString, _ value: inout String) {
        key(name)
        quote(value)
    }

    mutating func bytes(_ number: UInt32, _ name: StaticString, _ value: inout [UInt8]) {
        key(name)
        out.append(UInt8(ascii: "\""))
        base64(value)
        out.append(UInt8(ascii: "\""))
    }

    mutating func enumeration<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ value: inout E) {
        guard !value.isUnspecified else { return }
        key(name)
        enumValue(value)
    }

    mutating func message<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        guard var message = value else { return }
        key(name)
        object(&message)
    }

    mutating func oneof(_: UInt32, is current: UInt32) -> UInt32? { current }

    mutating func oneofMessage<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        message(number, name, &value)
    }

    mutating func strings(_ number: UInt32, _ name: StaticString, _ values: inout [String]) {
        array(name, values) { $0.quote($1) }
    }

    mutating func enumerations<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ values: inout [E]) {
        array(name, values) { $0.enumValue($1) }
    }

    mutating func messages<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ values: inout [M]) {
        array(name, values) { writer, value in
            var value = value
            writer.object(&value)
        }
    }

    private mutating func array<T>(
        _ name: StaticString, _ values: [T], _ element: (inout JSONWriter, T) -> Void
    ) {
        key(name)
        out.append(UInt8(ascii: "["))
        for (index, value) in values.enumerated() {
            if index > 0 { out.append(UInt8(ascii: ",")) }
            element(&self, value)
        }
        out.append(UInt8(ascii: "]"))
    }

    private mutating func enumValue<E: WireEnum>(_ value: E) {
        if let name = value.knownName { quote(name) } else { append(String(value.rawValue)) }
    }

    private mutating func key(_ name: StaticString) {
        if needsComma { out.append(UInt8(ascii: ",")) }
        needsComma = true
        quote(name.description)
        out.append(UInt8(ascii: ":"))
    }

    private mutating func append(_ text: String) { out.append(contentsOf: text.utf8) }

    /// A JSON string (RFC 8259, section 7).
    private mutating func quote(_ text: String) {
        out.append(UInt8(ascii: "\""))
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\""): append("\\\"")
            case UInt8(ascii: "\\"): append("\\\\")
            case 0x0a: append("\\n")
            case 0x0d: append("\\r")
            case 0x09: append("\\t")
            case 0..<0x20, 0x7f: append(byte < 16 ? "\\u000\(Self.hex(byte))" : "\\u00\(Self.hex(byte))")
            default: out.append(byte)
            }
        }
        out.append(UInt8(ascii: "\""))
    }

    private static func hex(_ byte: UInt8) -> String { String(byte, radix: 16) }

    /// RFC 4648, section 4, with padding.
    private mutating func base64(_ bytes: [UInt8]) {
        let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
        for start in stride(from: 0, to: bytes.count, by: 3) {
            let group = bytes[start..<min(start + 3, bytes.count)]
            var bits = 0
            for index in 0..<3 { bits = bits << 8 | (index < group.count ? Int(group[start + index]) : 0) }
            for index in 0..<4 {
                let isPadding = index > group.count
                out.append(isPadding ? UInt8(ascii: "=") : alphabet[bits >> (18 - 6 * index) & 63])
            }
        }
    }
}
