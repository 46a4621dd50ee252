package import DiskImages

/// A drive as the command line names it: `id=ID,file=PATH[,format=raw|qcow2][,read-only=on|off]
/// [,cache=writeback|none]`.
package struct DriveOption: Sendable, Hashable {
    package var id: String
    package var file: String
    /// nil: found out once.
    package var format: ImageFormat?
    package var isReadOnly: Bool
    package var cache: CacheMode
    /// `format` is raw, and was found out rather than stated: what the guest writes must not make the image look like
    /// another format.
    package var isProbedRaw: Bool

    package init(
        id: String, file: String, format: ImageFormat? = nil, isReadOnly: Bool = false,
        cache: CacheMode = .writeback, isProbedRaw: Bool = false
    ) {
        self.id = id
        self.file = file
        self.format = format
        self.isReadOnly = isReadOnly
        self.cache = cache
        self.isProbedRaw = isProbedRaw
    }

    /// Reads the option's text; a comma inside a value is doubled, as QEMU has it. Throws a sentence about
    /// what is wrong.
    package init(parsing text: String) throws(AgentError) {
        do throws(OptionText.Refusal) { self = try Self.parse(text) } catch {
            throw AgentError(
                .fieldInvalid, "Couldn't understand the drive '\(text)': \(error.why)", subject: "drive")
        }
    }

    private static func parse(_ text: String) throws(OptionText.Refusal) -> DriveOption {
        let values = try OptionText(
            OptionText.split(text), keys: ["id", "file", "format", "read-only", "cache"])
        guard let id = values["id"] else { throw OptionText.Refusal(why: "'id' is missing") }
        guard Identifier.isValid(id) else {
            throw OptionText.Refusal(
                why: "the id is not valid: it is a letter, then letters, digits, '-', '.' and '_'")
        }
        let file = try values.required("file")
        var format: ImageFormat?
        if let word = values["format"] {
            guard let known = ImageFormat(rawValue: word) else {
                throw OptionText.Refusal(why: "'\(word)' is no format (raw and qcow2 are)")
            }
            format = known
        }
        var cache = CacheMode.writeback
        if let word = values["cache"] {
            guard let known = CacheMode(rawValue: word) else {
                throw OptionText.Refusal(why: "'\(word)' is no cache mode (writeback and none are)")
            }
            cache = known
        }
        return DriveOption(
            id: id, file: file, format: format, isReadOnly: try values.flag("read-only") ?? false,
            cache: cache)
    }
}
