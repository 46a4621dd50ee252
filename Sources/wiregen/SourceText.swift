/// Source code under construction, with its indentation.
struct SourceText {
    private(set) var text = ""
    private var depth = 0

    mutating func line(_ line: String = "") {
        if !line.isEmpty { text += String(repeating: "    ", count: depth) + line }
        text += "\n"
    }

    mutating func open(_ line: String) {
        self.line(line)
        depth += 1
    }

    mutating func close() {
        depth -= 1
        line("}")
    }

    /// Closes one block and opens the next in the same line.
    mutating func reopen(_ line: String) {
        depth -= 1
        open(line)
    }

    /// A documentation comment, its words filled anew into lines of at most 110 columns.
    mutating func docs(_ comment: String, orElse fallback: String = "") {
        let words = (comment.isEmpty ? fallback : comment).split { $0 == " " || $0 == "\n" }
        guard !words.isEmpty else { return }
        let width = 110 - depth * 4 - 4
        var current = ""
        for word in words {
            if !current.isEmpty, current.count + 1 + word.count > width {
                line("/// " + current)
                current = ""
            }
            current += (current.isEmpty ? "" : " ") + word
        }
        line("/// " + current)
    }
}
