/// Where staging is, as the command line names it: `DIR[,size=SIZE]`.
package struct StagingOption: Sendable, Hashable {
    package var directory: String
    /// What one job may take there in bytes; nil: what the file system has to give.
    package var limit: UInt64?

    package init(directory: String, limit: UInt64? = nil) {
        self.directory = directory
        self.limit = limit
    }

    /// Reads the option's text; a comma in the directory's path is doubled. Throws a sentence about what is wrong.
    package init(parsing text: String) throws(AgentError) {
        let parts = OptionText.split(text)
        do throws(OptionText.Refusal) {
            guard let directory = parts.first, !directory.isEmpty else {
                throw OptionText.Refusal(why: "the directory is missing")
            }
            let values = try OptionText(parts.dropFirst(), keys: ["size"])
            self.init(directory: directory)
            if let size = values["size"] { limit = try Self.size(size) }
        } catch {
            throw AgentError(
                .fieldInvalid, "Couldn't understand the staging '\(text)': \(error.why)", subject: "staging")
        }
    }

    /// Bytes, with a binary suffix K, M, G or T where one is given.
    private static func size(_ text: String) throws(OptionText.Refusal) -> UInt64 {
        let shifts: [String: Int] = ["K": 10, "M": 20, "G": 30, "T": 40]
        let shift = text.last.flatMap { shifts[$0.uppercased()] }
        let digits = shift == nil ? text[...] : text.dropLast()
        guard digits.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), let number = UInt64(digits), number > 0,
            number <= UInt64(Int64.max) >> UInt64(shift ?? 0)
        else {
            throw OptionText.Refusal(
                why: "'\(text)' is no size (a number of bytes, or of K, M, G or T, as in size=20G)")
        }
        return number << UInt64(shift ?? 0)
    }
}
