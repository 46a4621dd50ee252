// The JSON of manifests. They are read by an agent that runs as root, and may have been written by anybody: so what is read
// has bounds (bytes, depth, values), and numbers are whole numbers, which keep their digits.

/// A value of a JSON text.
enum JSONValue: Sendable, Hashable {
    case null
    case bool(Bool)
    case number(Int64)
    case text(String)
    case list([JSONValue])
    case object([String: JSONValue])

    /// Why a text is not one that is read here; the position is in bytes.
    struct Failure: Error, Sendable, Hashable {
        var reason: String
        var position: Int
    }

    static let mostDepth = 8
    static let mostValues = 1 << 20

    /// Reads a whole text.
    init(parsing bytes: [UInt8]) throws(Failure) {
        var parser = JSONParser(bytes: bytes)
        self = try parser.value(depth: 0)
        try parser.end()
    }
}

private struct JSONParser {
    let bytes: [UInt8]
    var position = 0
    var count = 0

    init(bytes: [UInt8]) { self.bytes = bytes }

    private var next: UInt8? { position < bytes.count ? bytes[position] : nil }

    private func failure(_ reason: String) -> JSONValue.Failure { .init(reason: reason, position: position) }

    private mutating func skipSpace() {
        while let byte = next, byte == 0x20 || (9...10).contains(byte) || byte == 13 { position += 1 }
    }

    mutating func end() throws(JSONValue.Failure) {
        skipSpace()
        guard next == nil else { throw failure("there is something behind its end") }
    }

    private mutating func take(_ word: StaticString) -> Bool {
        let length = word.utf8CodeUnitCount
        let isThere = word.withUTF8Buffer { bytes[position...].starts(with: $0) }
        if isThere { position += length }
        return isThere
    }

    mutating func value(depth: Int) throws(JSONValue.Failure) -> JSONValue {
        guard depth < JSONValue.mostDepth else { throw failure("it is nested too deeply") }
        count += 1
        guard count <= JSONValue.mostValues else { throw failure("it has too many values") }
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return try object(depth)
        case UInt8(ascii: "["): return try list(depth)
        case UInt8(ascii: "\""): return .text(try text())
        case let byte?
        where byte == UInt8(ascii: "-") || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte):
            return try number()
        default:
            if take("true") { return .bool(true) }
            if take("false") { return .bool(false) }
            if take("null") { return .null }
            throw failure("there is no value")
        }
    }

    private mutating func list(_ depth: Int) throws(JSONValue.Failure) -> JSONValue {
        var items: [JSONValue] = []
        position += 1
        skipSpace()
        if take("]") { return .list([]) }
        while true {
            items.append(try value(depth: depth + 1))
            skipSpace()
            if take("]") { return .list(items) }
            guard take(",") else { throw failure("a list goes on without a comma") }
        }
    }

    private mutating func object(_ depth: Int) throws(JSONValue.Failure) -> JSONValue {
        var members: [String: JSONValue] = [:]
        position += 1
        skipSpace()
        if take("}") { return .object([:]) }
        while true {
            skipSpace()
            guard next == UInt8(ascii: "\"") else { throw failure("an object has a member without name") }
            let name = try text()
            skipSpace()
            guard take(":") else { throw failure("a member's name is not followed by a colon") }
            guard members.updateValue(try value(depth: depth + 1), forKey: name) == nil else {
                throw failure("a member is there twice")
            }
            skipSpace()
            if take("}") { return .object(members) }
            guard take(",") else { throw failure("an object goes on without a comma") }
        }
    }

    private mutating func number() throws(JSONValue.Failure) -> JSONValue {
        let start = position
        if next == UInt8(ascii: "-") { position += 1 }
        while let byte = next, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { position += 1 }
        let word = String(decoding: bytes[start..<position], as: UTF8.self)
        if let byte = next, byte == UInt8(ascii: ".") || byte | 0x20 == UInt8(ascii: "e") {
            throw failure("a number is not a whole one")
        }
        guard let number = Int64(word) else { throw failure("a number is none, or too large") }
        return .number(number)
    }

    private mutating func text() throws(JSONValue.Failure) -> String {
        position += 1
        var units: [UInt8] = []
        while let byte = next {
            position += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let text = String(validating: units, as: UTF8.self) else {
                    throw failure("a text is not UTF-8")
                }
                return text
            case UInt8(ascii: "\\"): units.append(contentsOf: try escape())
            case 0..<0x20: throw failure("a text has a control character")
            default: units.append(byte)
            }
        }
        throw failure("a text has no end")
    }

    private mutating func escape() throws(JSONValue.Failure) -> [UInt8] {
        guard let byte = next else { throw failure("a text has no end") }
        position += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
        case UInt8(ascii: "b"): return [8]
        case UInt8(ascii: "f"): return [12]
        case UInt8(ascii: "n"): return [10]
        case UInt8(ascii: "r"): return [13]
        case UInt8(ascii: "t"): return [9]
        case UInt8(ascii: "u"):
            let unit = try hexadecimal()
            guard (0xD800..<0xDC00).contains(unit) else { return try utf8(unit) }
            guard take("\\u") else { throw failure("half of a pair stands alone") }
            let other = try hexadecimal()
            guard (0xDC00..<0xE000).contains(other) else { throw failure("half of a pair stands alone") }
            return try utf8(0x10000 + (unit - 0xD800) << 10 + (other - 0xDC00))
        default: throw failure("an escape is not known")
        }
    }

    private mutating func hexadecimal() throws(JSONValue.Failure) -> UInt32 {
        guard bytes.count - position >= 4 else { throw failure("a text has no end") }
        var unit: UInt32 = 0
        for byte in bytes[position..<position + 4] {
            guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw failure("an escape is not known")
            }
            unit = unit << 4 | UInt32(digit)
        }
        position += 4
        return unit
    }

    private func utf8(_ code: UInt32) throws(JSONValue.Failure) -> [UInt8] {
        guard let scalar = Unicode.Scalar(code) else { throw failure("half of a pair stands alone") }
        return Array(String(Character(scalar)).utf8)
    }
}

extension String {
    /// The string as a JSON text, quotes included.
    var asJSON: String {
        var text = "\""
        for scalar in unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\t": text += "\\t"
            case "\0"..<" ", "\u{7F}":
                let digits = String(scalar.value, radix: 16)
                text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: text.unicodeScalars.append(scalar)
            }
        }
        return text + "\""
    }
}
