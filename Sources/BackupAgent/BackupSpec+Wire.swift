internal import BackupJobs
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
        guard !(waitsForFinalize && sync == .none) else {
            throw Self.invalid(
                "manual_finalize",
                "With sync none it is the cancel that ends the job: manual_finalize has no meaning")
        }
        keepsTarget = request.keepTarget
        switch request.checksum {
        case .unspecified, .xxh3128: checksum = .xxh3
        case .sha256: checksum = .sha256
        default: throw Self.invalid("checksum", "The checksum \(request.checksum) is not known")
        }
        switch request.clone {
        // Of what nobody reads there are no digests.
        case .unspecified, .auto: clones = request.checksum == .unspecified
        case .never: clones = false
        default: throw Self.invalid("clone", "The clone mode \(request.clone) is not known")
        }
        onSourceError = try Self.policy(request.onSourceError, "on_source_error")
        onTargetError = try Self.policy(request.onTargetError, "on_target_error")
        try takeSavingOptions(request)
        guard !request.rebase else {
            throw AgentError(
                .fieldUnimplemented,
                "rebase is not implemented yet (a new target gets the drive's image as its backing file; an existing one "
                    + "must have it already: 'qemu-img rebase -u' writes it)", subject: "rebase")
        }
    }

    private mutating func takeSavingOptions(_ request: BackupRequest) throws(AgentError) {
        switch request.onCbwError {
        case .unspecified, .breakSnapshot: saveFailure = .breakSnapshot
        case .breakGuestWrite: saveFailure = .breakGuestWrite
        default:
            throw Self.invalid("on_cbw_error", "on_cbw_error: the policy \(request.onCbwError) is not known")
        }
        switch request.cbwTimeoutNs {
        case 0: saveTimeout = .seconds(5)
        case -1: saveTimeout = .zero
        case 1...: saveTimeout = .nanoseconds(request.cbwTimeoutNs)
        default:
            throw Self.invalid(
                "cbw_timeout_ns", "The cbw_timeout_ns \(request.cbwTimeoutNs) is negative (-1 is no limit)")
        }
        switch request.stagingFull {
        case .unspecified, .fail: stagingFull = .fail
        case .stall: stagingFull = .stall
        default:
            throw Self.invalid("staging_full", "staging_full: the policy \(request.stagingFull) is not known")
        }
    }

    /// The backups of a group; every field is checked, none is looked up.
    package static func group(_ request: StartGroupRequest) throws(AgentError) -> [BackupSpec] {
        let isGrouped: Bool
        switch request.completion {
        case .unspecified, .individual: isGrouped = false
        case .grouped: isGrouped = true
        default: throw invalid("completion", "The completion \(request.completion) is not known")
        }
        guard !request.backups.isEmpty else { throw invalid("backups", "The group has no backups") }
        guard request.backups.count <= largestGroup else {
            throw invalid("backups", "The group has more than \(largestGroup) backups")
        }
        var specs: [BackupSpec] = []
        for backup in request.backups {
            guard !backup.detach, backup.requestKey.isEmpty else {
                throw invalid("backups", "detach and request_key are the group's, not those of its backups")
            }
            var spec = try BackupSpec(backup)
            guard !(isGrouped && spec.sync == .none) else {
                throw invalid(
                    "completion",
                    "With sync none it is each job's cancel that ends it: completion grouped has no meaning")
            }
            spec.isGrouped = isGrouped
            for other in specs {
                if other.drive == spec.drive {
                    throw invalid(
                        "backups", "The drive \(spec.drive) is named twice: a group has each drive once")
                }
                if other.jobID == spec.jobID {
                    throw invalid("backups", "The job id \(spec.jobID) is given twice")
                }
                if other.target == spec.target {
                    throw invalid("backups", "The target \(spec.target) is given twice")
                }
            }
            guard request.requestKey.utf8.count <= 255 else {
                throw invalid("request_key", "The request key is longer than 255 bytes")
            }
            spec.requestKey = request.requestKey
            specs.append(spec)
        }
        return specs
    }

    /// How many drives can be backed up at one instant.
    static let largestGroup = 256

    private static func sync(_ mode: SyncMode) throws(AgentError) -> BackupSync {
        switch mode {
        case .full: return .full
        case .top: return .top
        case .none: return .none
        case .unspecified: throw invalid("sync", "The sync mode is missing (full, top or none)")
        case .incremental, .bitmap:
            throw AgentError(
                .fieldUnimplemented, "The sync mode \(mode) is not implemented yet (full, top and none are)",
                subject: "sync")
        default: throw invalid("sync", "The sync mode \(mode) is not known")
        }
    }

    static func policy(
        _ policy: DriveBackupWire.ErrorPolicy, _ field: String
    ) throws(AgentError) -> BackupJobs.ErrorPolicy {
        switch policy {
        case .unspecified, .report: return .report
        case .ignore: return .ignore
        case .enospc: return .enospc
        case .stop: return .stop
        case .auto: return .auto
        default: throw invalid(field, "\(field): the policy \(policy) is not known")
        }
    }

    static func invalid(_ field: String, _ message: String) -> AgentError {
        AgentError(.fieldInvalid, message, subject: field)
    }
}
