/// The syntax of drive ids and job ids, as QEMU has it: a letter, then letters, digits, '-', '.', '_'.
enum Identifier {
    /// The longest id in bytes.
    static let maximumLength = 255

    static func isValid(_ text: String) -> Bool {
        let bytes = text.utf8
        guard let first = bytes.first, bytes.count <= maximumLength, isLetter(first) else { return false }
        return bytes.allSatisfy { byte in
            isLetter(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                || byte == UInt8(ascii: "-") || byte == UInt8(ascii: ".") || byte == UInt8(ascii: "_")
        }
    }

    /// Throws FIELD_INVALID, naming `field`, unless `text` is an id.
    static func check(_ text: String, field: String) throws(AgentError) {
        guard isValid(text) else {
            throw AgentError(
                .fieldInvalid,
                "The \(field) \(quoted(text)) is not valid: an id is a letter, then letters, digits, '-', "
                    + "'.' and '_', at most \(maximumLength) of them",
                subject: field)
        }
    }

    /// `text` in quotation marks, cut where it is too long for a message and without control characters.
    static func quoted(_ text: String) -> String {
        let clean = text.unicodeScalars.prefix(120).map { scalar in
            scalar.properties.generalCategory == .control ? "\u{FFFD}" : Character(scalar)
        }
        let isCut = text.unicodeScalars.count > 120
        return "'" + String(clean) + (isCut ? "…" : "") + "'"
    }

    private static func isLetter(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20)
    }
}
