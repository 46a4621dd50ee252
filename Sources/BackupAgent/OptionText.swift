/// The text of an option of the command line: `KEY=VALUE,KEY=VALUE`, a comma inside a value doubled, as QEMU has it.
struct OptionText {
    /// What is wrong with a text, a phrase.
    struct Refusal: Error, Hashable {
        var why: String
    }

    private var values: [String: String] = [:]

    /// Reads parts of the form KEY=VALUE with these keys, each at most once.
    init(_ parts: some Sequence<String>, keys: [String]) throws(Refusal) {
        for part in parts {
            guard let equals = part.firstIndex(of: "=") else {
                throw Refusal(why: "'\(part)' is not of the form KEY=VALUE")
            }
            let key = String(part[..<equals])
            guard keys.contains(key) else {
                throw Refusal(why: "there is no key '\(key)' (known are \(keys.joined(separator: ", ")))")
            }
            guard values.updateValue(String(part[part.index(after: equals)...]), forKey: key) == nil else {
                throw Refusal(why: "'\(key)' is given twice")
            }
        }
    }

    subscript(key: String) -> String? { values[key] }

    /// The value, which must be there and not be empty.
    func required(_ key: String) throws(Refusal) -> String {
        guard let value = values[key], !value.isEmpty else { throw Refusal(why: "'\(key)' is missing") }
        return value
    }

    /// `on` or `off`; nil where it is not given.
    func flag(_ key: String) throws(Refusal) -> Bool? {
        switch values[key] {
        case nil: nil
        case "on": true
        case "off": false
        case .some(let word): throw Refusal(why: "\(key) is 'on' or 'off', not '\(word)'")
        }
    }

    /// The parts between single commas, with doubled commas made single ones.
    static func split(_ text: String) -> [String] {
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
