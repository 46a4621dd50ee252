internal import Foundation

/// A source file of the package, as it is and with comments and string literals blanked out, so that a rule that looks
/// for a word finds code and not prose. Both have the same lines.
struct SourceText {
    /// Relative to the package's directory, for example `Sources/BlockIO/ByteRange.swift`.
    let path: String
    let lines: [String]
    /// The same lines with comments and string literals replaced by spaces.
    let code: [String]

    init(path: String, text: String) {
        self.path = path
        lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        code = Self.blanked(text).split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    }

    /// The module that the file belongs to: the directory below `Sources` or `Tests`.
    var module: String {
        let parts = path.split(separator: "/")
        return parts.count > 2 ? String(parts[1]) : ""
    }

    var isTest: Bool { path.hasPrefix("Tests/") }
    var isGenerated: Bool {
        path.contains("/Generated/") || path.hasSuffix(".pb-c.c") || path.hasSuffix(".pb-c.h")
    }

    /// The modules that the file imports, whatever the access level or attribute.
    var imports: [String] {
        code.compactMap { line in
            guard line.contains("import"),
                let match = line.firstMatch(
                    of:
                        /^\s*(?:@\w+(?:\(\w+\))?\s+)*(?:(?:public|package|internal|fileprivate|private)\s+)?import\s+(?:(?:struct|class|enum|protocol|func|var|let|typealias)\s+)?(\w+)/
                )
            else { return nil }
            return String(match.1)
        }
    }

    private static func blanked(_ text: String) -> String {
        enum Mode {
            case code
            case lineComment
            case blockComment(depth: Int)
            case string(quotes: Int, hashes: Int)
        }
        let bytes = Array(text.utf8)
        var result: [UInt8] = []
        result.reserveCapacity(bytes.count)
        // Interpolations inside literals are code again; each remembers the literal it is in and its open brackets.
        var literals: [(quotes: Int, hashes: Int, brackets: Int)] = []
        var mode = Mode.code
        var index = 0

        func byte(_ offset: Int) -> UInt8? { index + offset < bytes.count ? bytes[index + offset] : nil }
        func matches(_ word: String, at offset: Int = 0) -> Bool {
            var position = index + offset
            for unit in word.utf8 {
                guard position < bytes.count, bytes[position] == unit else { return false }
                position += 1
            }
            return true
        }
        func blank(_ count: Int) {
            for _ in 0..<count where index < bytes.count {
                result.append(bytes[index] == UInt8(ascii: "\n") ? UInt8(ascii: "\n") : UInt8(ascii: " "))
                index += 1
            }
        }
        func keep() {
            result.append(bytes[index])
            index += 1
        }

        while let current = byte(0) {
            switch mode {
            case .code:
                if matches("//") {
                    mode = .lineComment
                    blank(2)
                } else if matches("/*") {
                    mode = .blockComment(depth: 1)
                    blank(2)
                } else if current == UInt8(ascii: "\"") || current == UInt8(ascii: "#") {
                    var hashes = 0
                    while byte(hashes) == UInt8(ascii: "#") { hashes += 1 }
                    guard byte(hashes) == UInt8(ascii: "\"") else {
                        keep()
                        break
                    }
                    let quotes = matches("\"\"\"", at: hashes) ? 3 : 1
                    mode = .string(quotes: quotes, hashes: hashes)
                    blank(hashes + quotes)
                } else {
                    if !literals.isEmpty {
                        let last = literals.count - 1
                        if current == UInt8(ascii: "(") { literals[last].brackets += 1 }
                        if current == UInt8(ascii: ")") {
                            literals[last].brackets -= 1
                            if literals[last].brackets == 0 {
                                let literal = literals.removeLast()
                                mode = .string(quotes: literal.quotes, hashes: literal.hashes)
                                blank(1)
                                break
                            }
                        }
                    }
                    keep()
                }
            case .lineComment:
                if current == UInt8(ascii: "\n") { mode = .code }
                blank(1)
            case .blockComment(let depth):
                if matches("/*") {
                    mode = .blockComment(depth: depth + 1)
                    blank(2)
                } else if matches("*/") {
                    mode = depth == 1 ? .code : .blockComment(depth: depth - 1)
                    blank(2)
                } else {
                    blank(1)
                }
            case .string(let quotes, let hashes):
                let fence = String(repeating: "#", count: hashes)
                if matches("\\" + fence + "(") {
                    literals.append((quotes, hashes, 1))
                    mode = .code
                    blank(2 + hashes)
                } else if current == UInt8(ascii: "\\"), hashes == 0 {
                    blank(2)
                } else if matches(String(repeating: "\"", count: quotes) + fence) {
                    mode = .code
                    blank(quotes + hashes)
                } else if quotes == 1, current == UInt8(ascii: "\n") {
                    // No literal of one quote goes over a line: it was no literal (a regular expression, say).
                    mode = .code
                    blank(1)
                } else {
                    blank(1)
                }
            }
        }
        return String(decoding: result, as: UTF8.self)
    }
}

/// The package's own files.
enum Repository {
    static let directory = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    /// All files below `Sources` and `Tests` with one of the extensions, sorted by path.
    static func files(_ extensions: Set<String>) throws -> [SourceText] {
        var found: [SourceText] = []
        for top in ["Sources", "Tests"] {
            let base = directory.appendingPathComponent(top)
            for name in try FileManager.default.subpathsOfDirectory(atPath: base.path)
            where extensions.contains((name as NSString).pathExtension) {
                let text = try String(contentsOf: base.appendingPathComponent(name), encoding: .utf8)
                found.append(SourceText(path: "\(top)/\(name)", text: text))
            }
        }
        return found.sorted { $0.path < $1.path }
    }
}
