internal import DiskImages
package import DriveBackupWire

extension BackupSpec {
    /// What a client wants to have verified; every field is checked, none is looked up.
    package init(_ request: VerifyRequest) throws(AgentError) {
        guard !request.target.isEmpty else { throw Self.invalid("target", "The target is missing") }
        let (_, name) = try PathPolicy.split(request.target)
        self.init(
            drive: "", target: request.target, sync: .full,
            jobID: try Self.jobID(request.jobID, "verify", name))
        work = .verify
        try takeSpeed(request.speed)
    }

    /// What a client wants to have restored.
    package init(_ request: RestoreRequest) throws(AgentError) {
        guard !request.target.isEmpty else { throw Self.invalid("target", "The target is missing") }
        let (_, name) = try PathPolicy.split(request.target)
        guard request.drive.isEmpty != request.file.isEmpty else {
            throw Self.invalid("file", "A backup is restored to a drive or to a file: give one of the two")
        }
        if !request.file.isEmpty {
            _ = try PathPolicy.split(request.file)
        } else {
            guard request.format.isEmpty else {
                throw Self.invalid("format", "A drive has its format: format has no meaning")
            }
            guard !request.overwrite else {
                throw Self.invalid("overwrite", "A drive is always overwritten: overwrite has no meaning")
            }
        }
        self.init(
            drive: request.drive, target: request.file, sync: .full,
            jobID: try Self.jobID(request.jobID, "restore", name))
        work = .restore(from: request.target)
        format = try ImageFormat(field: "format", word: request.format)
        overwrites = request.overwrite
        guard request.requestKey.utf8.count <= 255 else {
            throw Self.invalid("request_key", "The request key is longer than 255 bytes")
        }
        requestKey = request.requestKey
        try takeSpeed(request.speed)
        onSourceError = try Self.policy(request.onSourceError, "on_source_error")
        onTargetError = try Self.policy(request.onTargetError, "on_target_error")
    }

    private mutating func takeSpeed(_ speed: Int64) throws(AgentError) {
        guard speed >= 0 else {
            throw Self.invalid("speed", "The speed \(speed) is negative (0 is unlimited)")
        }
        speedBytesPerSecond = speed
    }

    /// The id that was asked for, or one made of the backup's name: the same for the same request, so that a retry with
    /// its key is the same request.
    private static func jobID(_ id: String, _ verb: String, _ name: String) throws(AgentError) -> String {
        guard id.isEmpty else {
            try Identifier.check(id, field: "job_id")
            return id
        }
        let safe = name.unicodeScalars.map { scalar in
            let isSafe = scalar.isASCII && Identifier.isValid("a" + String(Character(scalar)))
            return isSafe ? Character(scalar) : "_"
        }
        return "\(verb)-\(String(safe.prefix(200)))"
    }
}
