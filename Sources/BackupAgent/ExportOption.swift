internal import BlockIO

/// An export as the command line names it: `drive=ID,listen=ADDRESS[,name=NAME][,writable=on|off]`.
package struct ExportOption: Sendable, Hashable {
    package var drive: String
    /// `unix:PATH`, `unix://PATH` or `tcp://HOST:PORT`.
    package var address: String
    /// Empty: the drive's id.
    package var name: String
    /// nil: writable unless the drive is read-only.
    package var isWritable: Bool?

    package init(drive: String, address: String, name: String = "", isWritable: Bool? = nil) {
        self.drive = drive
        self.address = address
        self.name = name.isEmpty ? drive : name
        self.isWritable = isWritable
    }

    /// Reads the option's text; a comma inside a value is doubled. Throws a sentence about what is wrong.
    package init(parsing text: String) throws(AgentError) {
        do throws(OptionText.Refusal) {
            let values = try OptionText(
                OptionText.split(text), keys: ["drive", "listen", "name", "writable"])
            self.init(
                drive: try values.required("drive"), address: try values.required("listen"),
                name: values["name"] ?? "", isWritable: try values.flag("writable"))
        } catch {
            throw AgentError(
                .fieldInvalid, "Couldn't understand the export '\(text)': \(error.why)", subject: "export")
        }
        try Self.checkName(name)
        _ = try ExportAddress(parsing: address)
    }

    /// A relative path of a Unix socket is one below `directory`. The result may be too long for one, which is told when it is
    /// used.
    mutating func makeAbsolute(in directory: String) {
        for prefix in ["unix://", "unix:"] where address.hasPrefix(prefix) {
            let path = address.dropFirst(prefix.count)
            if !path.isAbsolutePath { address = "unix:\(directory)/\(path)" }
            return
        }
    }

    /// The longest name in bytes; NBD allows 4096.
    static let longestName = 255

    /// Throws FIELD_INVALID unless clients can ask for an export of this name.
    static func checkName(_ name: String) throws(AgentError) {
        let isPrintable = name.unicodeScalars.allSatisfy { $0.properties.generalCategory != .control }
        guard !name.isEmpty, name.utf8.count <= longestName, isPrintable else {
            throw AgentError(
                .fieldInvalid,
                "The export's name \(Identifier.quoted(name)) is not valid: it has 1 to \(longestName) bytes and no "
                    + "control characters", subject: "name")
        }
    }
}
