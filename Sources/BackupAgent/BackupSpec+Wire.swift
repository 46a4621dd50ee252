internal import DiskImages
package import DriveBackupWire

extension BackupSpec {
    /// What a client asked for; every field is checked, none is looked up.
    package init(_ request: BackupRequest) throws(AgentError) {
        guard !request.drive.isEmpty else { throw Self.invalid("drive", "The drive is missing") }
        let jobID = request.jobID.isEmpty ? request.drive : request.jobID
        if !request.jobID.isEmpty { try Identifier.check(request.jobID, field: "job_id") }
        guard !request.target.isEmpty else { throw Self.invalid("target", "The target is missing") }
        _ = try PathPolicy.split(request.target)
        self.init(
            drive: request.drive, target: request.target, sync: try Self.sync(request.sync), jobID: jobID)
        format = try ImageFormat(field: "format", word: request.format)
        switch request.mode {
        case .unspecified, .absolutePaths: mode = .absolutePaths
        case .existing: mode = .existing
        default: throw Self.invalid("mode", "The mode \(request.mode) is not known")
        }
        overwrites = request.overwrite
        guard !(overwrites && mode == .existing) else {
            throw Self.invalid(
                "overwrite", "With mode existing the target is written in place: overwrite has no meaning")
        }
        guard request.speed >= 0 else {
            throw Self.invalid("speed", "The speed \(request.speed) is negative (0 is unlimited)")
        }
        speedBytesPerSecond = request.speed
        guard request.requestKey.utf8.count <= 255 else {
            throw Self.invalid("request_key", "The request key is longer than 255 bytes")
        }
        requestKey = request.requestKey
        waitsForFinalize = request.manualFinalize
        waitsForDismiss = request.manualDismiss
        try Self.check(request.onSourceError, "on_source_error")
        try Self.check(request.onTargetError, "on_target_error")
    }

    private static func sync(_ mode: SyncMode) throws(AgentError) -> BackupSync {
        switch mode {
        case .full: return .full
        case .top: return .top
        case .unspecified: throw invalid("sync", "The sync mode is missing (full or top)")
        case .none, .incremental, .bitmap:
            throw AgentError(
                .fieldUnimplemented, "The sync mode \(mode) is not implemented yet (full and top are)",
                subject: "sync")
        default: throw invalid("sync", "The sync mode \(mode) is not known")
        }
    }

    private static func check(_ policy: ErrorPolicy, _ field: String) throws(AgentError) {
        switch policy {
        case .unspecified, .report: return
        case .ignore, .enospc, .stop, .auto:
            throw AgentError(
                .fieldUnimplemented, "\(field): the policy \(policy) is not implemented yet (report is)",
                subject: field)
        default: throw invalid(field, "\(field): the policy \(policy) is not known")
        }
    }

    private static func invalid(_ field: String, _ message: String) -> AgentError {
        AgentError(.fieldInvalid, message, subject: field)
    }
}
