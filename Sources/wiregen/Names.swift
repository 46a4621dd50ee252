/// How names of the schema become names of Swift and C.
struct Names {
    /// The Swift namespace of each package that has one: `drivebackup.rpc.v1` is `Frames`.
    var namespaces: [String: String] = [:]

    private static let acronyms: [String: String] = ["id": "ID", "io": "IO"]
    private static let keywords: Set<String> = [
        "as", "associatedtype", "break", "case", "catch", "class", "continue", "default", "defer", "deinit",
        "do",
        "else", "enum", "extension", "fallthrough", "false", "fileprivate", "for", "func", "guard", "if",
        "import",
        "in", "init", "inout", "internal", "is", "let", "nil", "operator", "precedencegroup", "private",
        "protocol",
        "public", "repeat", "rethrows", "return", "self", "static", "struct", "subscript", "super", "switch",
        "throw", "throws", "true", "try", "typealias", "var", "where", "while",
    ]

    /// `job_id` is `jobID`, `id` is `id`.
    func lowerCamel(_ name: String) -> String {
        var result = ""
        for (index, word) in name.lowercased().split(separator: "_").map(String.init).enumerated() {
            if index == 0 {
                result += word
            } else {
                result += Self.acronyms[word] ?? (word.prefix(1).uppercased() + word.dropFirst())
            }
        }
        return result
    }

    /// The same, in backticks where Swift needs them.
    func identifier(_ name: String) -> String {
        let camel = lowerCamel(name)
        return Self.keywords.contains(camel) ? "`\(camel)`" : camel
    }

    /// `SetSpeed` is `setSpeed`.
    func methodIdentifier(_ name: String) -> String {
        let camel = name.prefix(1).lowercased() + name.dropFirst()
        return Self.keywords.contains(camel) ? "`\(camel)`" : camel
    }

    /// `event` is `Event`.
    func upperCamel(_ name: String) -> String {
        let camel = lowerCamel(name)
        return Self.acronyms[camel] ?? (camel.prefix(1).uppercased() + camel.dropFirst())
    }

    /// `drivebackup.v1.Job` is `Job`, `drivebackup.rpc.v1.Hello` is `Frames.Hello`.
    func swiftType(_ fullName: String) -> String {
        guard let dot = fullName.lastIndex(of: ".") else { return fullName }
        let name = String(fullName[fullName.index(after: dot)...])
        guard let namespace = namespaces[String(fullName[..<dot])] else { return name }
        return "\(namespace).\(name)"
    }

    /// The accessor of a message's C descriptor.
    func accessor(_ fullName: String) -> String {
        "cwire_" + fullName.split(separator: ".").map { snake(String($0)) }.joined(separator: "_")
    }

    /// The C descriptor of a message, as protoc-c names it.
    func descriptor(_ fullName: String) -> String {
        fullName.split(separator: ".").map { snake(String($0)) }.joined(separator: "__") + "__descriptor"
    }

    /// What the names of an enum's values begin with: `JobState` is `JOB_STATE_`.
    func valuePrefix(_ enumName: String) -> String { snake(enumName).uppercased() + "_" }

    /// protoc-c's own rule: an underscore before each capital letter that does not follow another.
    private func snake(_ name: String) -> String {
        var result = ""
        var wasUpper = true
        for character in name {
            if character.isUppercase, !wasUpper { result += "_" }
            wasUpper = character.isUppercase
            result += character.lowercased()
        }
        return result
    }
}
