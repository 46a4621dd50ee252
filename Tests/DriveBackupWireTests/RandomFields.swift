internal import DriveBackupWire
internal import TestKit

/// Fills a message with anything that the schema allows.
struct RandomFields: FieldCoder {
    var generator: SeededGenerator

    /// Some message of the type, and the generator moved on.
    static func message<M: WireMessage>(_ type: M.Type, _ generator: inout SeededGenerator) -> M {
        var message = M()
        var filler = RandomFields(generator: generator)
        message.fields(&filler)
        generator = filler.generator
        return message
    }

    mutating func bool(_ number: UInt32, _ name: StaticString, _ value: inout Bool) {
        value = generator.oneIn(2)
    }

    mutating func int32(_ number: UInt32, _ name: StaticString, _ value: inout Int32) { value = integer() }

    mutating func int64(_ number: UInt32, _ name: StaticString, _ value: inout Int64) { value = integer() }

    mutating func uint32(_ number: UInt32, _ name: StaticString, _ value: inout UInt32) { value = integer() }

    mutating func uint64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) { value = integer() }

    mutating func fixed64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) { value = integer() }

    mutating func string(_ number: UInt32, _ name: StaticString, _ value: inout String) { value = text() }

    mutating func bytes(_ number: UInt32, _ name: StaticString, _ value: inout [UInt8]) {
        value = generator.bytes(generator.oneIn(20) ? generator.below(10_000) : generator.below(10))
    }

    mutating func enumeration<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ value: inout E) {
        value = any(E.self)
    }

    mutating func message<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        value = generator.oneIn(4) ? nil : Self.message(M.self, &generator)
    }

    mutating func oneof(_: UInt32, is _: UInt32) -> UInt32? { nil }

    /// Often a later one of the oneof wins.
    mutating func oneofMessage<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        if generator.oneIn(3) { value = Self.message(M.self, &generator) }
    }

    mutating func strings(_ number: UInt32, _ name: StaticString, _ values: inout [String]) {
        values = (0..<count()).map { _ in text() }
    }

    mutating func enumerations<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ values: inout [E]) {
        values = (0..<count()).map { _ in any(E.self) }
    }

    mutating func messages<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ values: inout [M]) {
        values = (0..<count()).map { _ in Self.message(M.self, &generator) }
    }

    private mutating func count() -> Int { generator.oneIn(10) ? generator.below(50) : generator.below(4) }

    private mutating func any<E: WireEnum>(_ type: E.Type) -> E {
        E.allCases[generator.below(E.allCases.count)]
    }

    /// Small numbers, the ends of the range, and all others.
    private mutating func integer<I: FixedWidthInteger>() -> I {
        switch generator.below(5) {
        case 0: 0
        case 1: I.max
        case 2: I.min
        case 3: I(truncatingIfNeeded: generator.below(300))
        default: I(truncatingIfNeeded: generator.next())
        }
    }

    private mutating func text() -> String {
        let alphabet: [Unicode.Scalar] = [
            "a", "Z", "0", "/", ".", " ", "\"", "\\", "\n", "\r", "\t", "\u{1}", "\u{1f}", "\u{7f}", "ä",
            "\u{85}",
            "\u{2028}", "漢", "\u{301}", "🗄", "\u{10ffff}", "'", "{", "<",
        ]
        var text = ""
        for _ in 0..<(generator.oneIn(20) ? generator.below(5000) : generator.below(12)) {
            text.unicodeScalars.append(alphabet[generator.below(alphabet.count)])
        }
        return text
    }
}
