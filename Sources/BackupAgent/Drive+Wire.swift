internal import DiskImages
package import DriveBackupWire

extension DriveInfo {
    package var wire: DriveBackupWire.Drive {
        var drive = DriveBackupWire.Drive()
        drive.id = id
        drive.file = file
        drive.format = format?.rawValue ?? ""
        drive.size = Int64(clamping: size)
        drive.readOnly = isReadOnly
        drive.cache = cache.rawValue
        drive.backing = backing.map { layer in
            var file = DriveBackupWire.BackingFile()
            file.file = layer.file
            file.format = layer.format.rawValue
            file.size = Int64(clamping: layer.size)
            return file
        }
        drive.clusterSize = Int64(clamping: clusterSize)
        drive.jobID = jobID ?? ""
        drive.fromCommandLine = isFromCommandLine
        drive.exports = exports
        drive.problem = (problem ?? "").replacing("\0", with: "\u{FFFD}")
        return drive
    }
}

extension DriveOption {
    /// The drive that a client wants to add; every field is checked.
    init(_ request: AddDriveRequest) throws(AgentError) {
        try Identifier.check(request.id, field: "id")
        try PathPolicy.checkSyntax(request.file)
        self.init(
            id: request.id, file: request.file,
            format: try ImageFormat(field: "format", word: request.format), isReadOnly: request.readOnly,
            cache: try CacheMode(field: "cache", word: request.cache) ?? .writeback)
    }
}

extension ImageFormat {
    /// The format a client named; nil for the empty word.
    init?(field: String, word: String) throws(AgentError) {
        guard !word.isEmpty else { return nil }
        guard let format = ImageFormat(rawValue: word) else {
            throw AgentError(
                .fieldInvalid, "The format \(Identifier.quoted(word)) is not known: raw and qcow2 are",
                subject: field)
        }
        self = format
    }
}

extension CacheMode {
    /// The cache mode a client named; nil for the empty word.
    init?(field: String, word: String) throws(AgentError) {
        guard !word.isEmpty else { return nil }
        guard let mode = CacheMode(rawValue: word) else {
            throw AgentError(
                .fieldInvalid,
                "The cache mode \(Identifier.quoted(word)) is not known: writeback and none are",
                subject: field)
        }
        self = mode
    }
}
