package import DiskImages

/// A drive as the command line names it: `id=ID,file=PATH[,format=raw|qcow2][,read-only=on|off]`.
package struct DriveOption: Sendable, Hashable {
    package var id: String
    package var file: String
    /// nil: found out once.
    package var format: ImageFormat?
    package var isReadOnly: Bool

    package init(id: String, file: String, format: ImageFormat? = nil, isReadOnly: Bool = false) {
        self.id = id
        self.file = file
        self.format = format
        self.isReadOnly = isReadOnly
    }

    /// Reads the option's text; a comma inside a value is doubled, as QEMU has it. Throws a sentence about
    /// what is wrong.
    package init(parsing text: String) throws(AgentError) {
        var values: [String: String] = [:]
        for part in Self.split(text) {
            guard let equals = part.firstIndex(of: "=") else {
                throw Self.invalid(text, "'\(part)' is not of the form KEY=VALUE")
            }
            let key = String(part[..<equals])
            guard ["id", "file", "format", "read-only"].contains(key) else {
                throw Self.invalid(text, "there is no key '\(key)' (known are id, file, format, read-only)")
            }
            guard values.updateValue(String(part[part.index(after: equals)...]), forKey: key) == nil else {
                throw Self.invalid(text, "'\(key)' is given twice")
            }
        }
        guard let id = values["id"] else { throw Self.invalid(text, "'id' is missing") }
        guard Identifier.isValid(id) else {
            throw Self.invalid(
                text, "the id is not valid: it is a letter, then letters, digits, '-', '.' and '_'")
        }
        guard let file = values["file"], !file.isEmpty else { throw Self.invalid(text, "'file' is missing") }
        var format: ImageFormat?
        if let word = values["format"] {
            guard let known = ImageFormat(rawValue: word) else {
                throw Self.invalid(text, "'\(word)' is no format (raw and qcow2 are)")
            }
            format = known
        }
        let isReadOnly: Bool
        switch values["read-only"] {
        case nil, "off": isReadOnly = false
        case "on": isReadOnly = true
        case .some(let word): throw Self.invalid(text, "read-only is 'on' or 'off', not '\(word)'")
        }
        self.init(id: id, file: file, format: format, isReadOnly: isReadOnly)
    }

    private static func invalid(_ text: String, _ why: String) -> AgentError {
        AgentError(.fieldInvalid, "Couldn't understand the drive '\(text)': \(why)", subject: "drive")
    }

    /// The parts between single commas, with doubled commas made single ones.
    private static func split(_ text: String) -> [String] {
        var parts: [String] = []
        var part = ""
        var rest = text[...]
        while let character = rest.popFirst() {
            if character != "," {
                part.append(character)
            } else if rest.first == "," {
                rest.removeFirst()
                part.append(",")
            } else {
                parts.append(part)
                part = ""
            }
        }
        return parts + [part]
    }
}
