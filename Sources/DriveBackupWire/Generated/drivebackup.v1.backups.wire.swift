// swift-format-ignore-file
// Generated from proto/drivebackup/v1/backups.proto by tools/generate. Never edited by hand.

internal import CWire

/// `drivebackup.v1.TargetMode`.
public struct TargetMode: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// As absolute-paths.
    public static let unspecified = Self(rawValue: 0)
    /// A new image is made.
    public static let absolutePaths = Self(rawValue: 1)
    /// An image that exists is written; its size must be the drive's.
    public static let existing = Self(rawValue: 2)

    public static let allCases: [Self] = [
        .unspecified,
        .absolutePaths,
        .existing,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "absolute_paths"
        case 2: "existing"
        default: nil
        }
    }
}

/// What happens when old content that a guest is about to overwrite cannot be saved.
public struct CbwErrorPolicy: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// As break-snapshot.
    public static let unspecified = Self(rawValue: 0)
    /// The guest's request goes on; the point in time is lost and the job fails.
    public static let breakSnapshot = Self(rawValue: 1)
    /// The guest's request fails; the job goes on.
    public static let breakGuestWrite = Self(rawValue: 2)

    public static let allCases: [Self] = [
        .unspecified,
        .breakSnapshot,
        .breakGuestWrite,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "break_snapshot"
        case 2: "break_guest_write"
        default: nil
        }
    }
}

/// What happens when staging is full.
public struct StagingFullPolicy: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// As fail.
    public static let unspecified = Self(rawValue: 0)
    /// The job fails; the guest goes on.
    public static let fail = Self(rawValue: 1)
    /// The guest's requests wait until there is space.
    public static let stall = Self(rawValue: 2)

    public static let allCases: [Self] = [
        .unspecified,
        .fail,
        .stall,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "fail"
        case 2: "stall"
        default: nil
        }
    }
}

/// How the jobs of a group end.
public struct GroupCompletion: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// As individual.
    public static let unspecified = Self(rawValue: 0)
    /// Each for itself.
    public static let individual = Self(rawValue: 1)
    /// All of them, or none.
    public static let grouped = Self(rawValue: 2)

    public static let allCases: [Self] = [
        .unspecified,
        .individual,
        .grouped,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "individual"
        case 2: "grouped"
        default: nil
        }
    }
}

/// What a manifest has of a backup's content.
public struct Checksum: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// As xxh3-128.
    public static let unspecified = Self(rawValue: 0)
    /// Finds damage.
    public static let xxh3128 = Self(rawValue: 1)
    /// Finds forgery, too, and costs more.
    public static let sha256 = Self(rawValue: 2)

    public static let allCases: [Self] = [
        .unspecified,
        .xxh3128,
        .sha256,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "xxh3_128"
        case 2: "sha_256"
        default: nil
        }
    }
}

/// Whether a raw target shares the blocks of a raw drive where their file system can do that.
public struct CloneMode: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// As auto.
    public static let unspecified = Self(rawValue: 0)
    /// A full backup to a new image begins with a clone, unless a checksum was asked for: nothing is read, so
    /// that the manifest has no digests.
    public static let auto = Self(rawValue: 1)
    /// Everything is read and written.
    public static let never = Self(rawValue: 2)

    public static let allCases: [Self] = [
        .unspecified,
        .auto,
        .never,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "auto"
        case 2: "never"
        default: nil
        }
    }
}

/// What to copy, where to, and how.
public struct BackupRequest: WireMessage {
    /// The drive's name.
    public var drive: String = ""
    /// The target's absolute path on the agent's host.
    public var target: String = ""
    /// What to copy; it has no default.
    public var sync: SyncMode = .unspecified
    /// "raw" or "qcow2". Empty: found out for `existing`, else the drive's own.
    public var format: String = ""
    public var mode: TargetMode = .unspecified
    /// Replace a file of the target's name once the new one is whole and durable.
    public var overwrite: Bool = false
    /// The limit of background copying in bytes a second; 0 is unlimited.
    public var speed: Int64 = 0
    /// The job's name; empty for the drive's. A letter, then letters, digits, '-', '.', '_'; at most 255
    /// bytes.
    public var jobID: String = ""
    /// Makes a retry harmless: within a day the same key with the same request returns the same job.
    public var requestKey: String = ""
    /// End the stream after `started`.
    public var detach: Bool = false
    /// Wait in `pending` for Finalize when the work is done.
    public var manualFinalize: Bool = false
    /// Stay in `concluded` until Dismiss when the job has ended.
    public var manualDismiss: Bool = false
    /// What to do when the drive cannot be read.
    public var onSourceError: ErrorPolicy = .unspecified
    /// What to do when the target cannot be written. A flush that fails fails the job under every policy.
    public var onTargetError: ErrorPolicy = .unspecified
    /// What to do when old content cannot be saved, or not within `cbw_timeout_ns`. Full staging has a policy
    /// of its own.
    public var onCbwError: CbwErrorPolicy = .unspecified
    /// How long the saving of one piece may take in nanoseconds; 0 for five seconds, -1 for as long as it
    /// takes.
    public var cbwTimeoutNs: Int64 = 0
    /// What to do when staging is full.
    public var stagingFull: StagingFullPolicy = .unspecified
    /// With mode existing and sync none: make the drive's image the target's backing file, whatever it has
    /// been. Not implemented yet.
    public var rebase: Bool = false
    /// When the job fails or is cancelled keep what there is of a new target, as TARGET.partial.
    public var keepTarget: Bool = false
    /// What the manifest is to have of the content.
    public var checksum: Checksum = .unspecified
    public var clone: CloneMode = .unspecified

    public init() {}

    public init(
        drive: String = "",
        target: String = "",
        sync: SyncMode = .unspecified,
        format: String = "",
        mode: TargetMode = .unspecified,
        overwrite: Bool = false,
        speed: Int64 = 0,
        jobID: String = "",
        requestKey: String = "",
        detach: Bool = false,
        manualFinalize: Bool = false,
        manualDismiss: Bool = false,
        onSourceError: ErrorPolicy = .unspecified,
        onTargetError: ErrorPolicy = .unspecified,
        onCbwError: CbwErrorPolicy = .unspecified,
        cbwTimeoutNs: Int64 = 0,
        stagingFull: StagingFullPolicy = .unspecified,
        rebase: Bool = false,
        keepTarget: Bool = false,
        checksum: Checksum = .unspecified,
        clone: CloneMode = .unspecified
    ) {
        self.drive = drive
        self.target = target
        self.sync = sync
        self.format = format
        self.mode = mode
        self.overwrite = overwrite
        self.speed = speed
        self.jobID = jobID
        self.requestKey = requestKey
        self.detach = detach
        self.manualFinalize = manualFinalize
        self.manualDismiss = manualDismiss
        self.onSourceError = onSourceError
        self.onTargetError = onTargetError
        self.onCbwError = onCbwError
        self.cbwTimeoutNs = cbwTimeoutNs
        self.stagingFull = stagingFull
        self.rebase = rebase
        self.keepTarget = keepTarget
        self.checksum = checksum
        self.clone = clone
    }

    public static let messageName = "drivebackup.v1.BackupRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_backup_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "drive", &drive)
        coder.string(2, "target", &target)
        coder.enumeration(3, "sync", &sync)
        coder.string(4, "format", &format)
        coder.enumeration(5, "mode", &mode)
        coder.bool(6, "overwrite", &overwrite)
        coder.int64(7, "speed", &speed)
        coder.string(8, "job_id", &jobID)
        coder.string(9, "request_key", &requestKey)
        coder.bool(10, "detach", &detach)
        coder.bool(11, "manual_finalize", &manualFinalize)
        coder.bool(12, "manual_dismiss", &manualDismiss)
        coder.enumeration(13, "on_source_error", &onSourceError)
        coder.enumeration(14, "on_target_error", &onTargetError)
        coder.enumeration(15, "on_cbw_error", &onCbwError)
        coder.int64(16, "cbw_timeout_ns", &cbwTimeoutNs)
        coder.enumeration(17, "staging_full", &stagingFull)
        coder.bool(18, "rebase", &rebase)
        coder.bool(19, "keep_target", &keepTarget)
        coder.enumeration(20, "checksum", &checksum)
        coder.enumeration(21, "clone", &clone)
    }
}

/// Backups at one point in time.
public struct StartGroupRequest: WireMessage {
    /// One for each drive, and each drive once. `detach` and `request_key` must not be set in them.
    public var backups: [BackupRequest] = []
    public var completion: GroupCompletion = .unspecified
    /// End the stream when all jobs have started.
    public var detach: Bool = false
    /// Makes a retry harmless: within a day the same key with the same request returns the same jobs.
    public var requestKey: String = ""

    public init() {}

    public init(
        backups: [BackupRequest] = [],
        completion: GroupCompletion = .unspecified,
        detach: Bool = false,
        requestKey: String = ""
    ) {
        self.backups = backups
        self.completion = completion
        self.detach = detach
        self.requestKey = requestKey
    }

    public static let messageName = "drivebackup.v1.StartGroupRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_start_group_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.messages(1, "backups", &backups)
        coder.enumeration(2, "completion", &completion)
        coder.bool(3, "detach", &detach)
        coder.string(4, "request_key", &requestKey)
    }
}

/// A backup to read back.
public struct VerifyRequest: WireMessage {
    /// The backup's absolute path on the agent's host.
    public var target: String = ""
    /// The job's name; empty for one of the agent's choosing.
    public var jobID: String = ""
    /// The limit of reading in bytes a second; 0 is unlimited.
    public var speed: Int64 = 0
    /// End the stream after `started`.
    public var detach: Bool = false

    public init() {}

    public init(
        target: String = "",
        jobID: String = "",
        speed: Int64 = 0,
        detach: Bool = false
    ) {
        self.target = target
        self.jobID = jobID
        self.speed = speed
        self.detach = detach
    }

    public static let messageName = "drivebackup.v1.VerifyRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_verify_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "target", &target)
        coder.string(2, "job_id", &jobID)
        coder.int64(3, "speed", &speed)
        coder.bool(4, "detach", &detach)
    }
}

/// A backup to write back.
public struct RestoreRequest: WireMessage {
    /// The backup's absolute path on the agent's host.
    public var target: String = ""
    /// The drive that is overwritten; empty when `file` is given.
    public var drive: String = ""
    /// The absolute path of the image that is made; empty when `drive` is given.
    public var file: String = ""
    /// The new image's format, "raw" or "qcow2"; empty for the backup's.
    public var format: String = ""
    /// Replace a file of that name once the new one is whole and durable.
    public var overwrite: Bool = false
    /// The limit of copying in bytes a second; 0 is unlimited.
    public var speed: Int64 = 0
    /// The job's name; empty for one of the agent's choosing.
    public var jobID: String = ""
    /// Makes a retry harmless, as in BackupRequest.
    public var requestKey: String = ""
    /// End the stream after `started`.
    public var detach: Bool = false
    /// What to do when the backup cannot be read.
    public var onSourceError: ErrorPolicy = .unspecified
    /// What to do when the image or the drive cannot be written.
    public var onTargetError: ErrorPolicy = .unspecified

    public init() {}

    public init(
        target: String = "",
        drive: String = "",
        file: String = "",
        format: String = "",
        overwrite: Bool = false,
        speed: Int64 = 0,
        jobID: String = "",
        requestKey: String = "",
        detach: Bool = false,
        onSourceError: ErrorPolicy = .unspecified,
        onTargetError: ErrorPolicy = .unspecified
    ) {
        self.target = target
        self.drive = drive
        self.file = file
        self.format = format
        self.overwrite = overwrite
        self.speed = speed
        self.jobID = jobID
        self.requestKey = requestKey
        self.detach = detach
        self.onSourceError = onSourceError
        self.onTargetError = onTargetError
    }

    public static let messageName = "drivebackup.v1.RestoreRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_restore_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "target", &target)
        coder.string(2, "drive", &drive)
        coder.string(3, "file", &file)
        coder.string(4, "format", &format)
        coder.bool(5, "overwrite", &overwrite)
        coder.int64(6, "speed", &speed)
        coder.string(7, "job_id", &jobID)
        coder.string(8, "request_key", &requestKey)
        coder.bool(9, "detach", &detach)
        coder.enumeration(10, "on_source_error", &onSourceError)
        coder.enumeration(11, "on_target_error", &onTargetError)
    }
}

/// The methods of `drivebackup.v1.Backups`.
public enum BackupsMethods {
    /// Starts a backup and reports it until it ends. The first event is `started`, sent when the point in
    /// time is fixed; with `detach` the stream ends there. A deadline or a lost connection ends the stream,
    /// never the job.
    public static let start = RPCMethod<BackupRequest, JobEvent>(
        "drivebackup.v1.Backups/Start", isServerStreaming: true)
    /// Starts backups of several drives at one point in time: all of them, or none. The stream has the events
    /// of all these jobs, first each one's `started`, and ends when all jobs have ended; with `detach` behind
    /// the last `started`.
    public static let startGroup = RPCMethod<StartGroupRequest, JobEvent>(
        "drivebackup.v1.Backups/StartGroup", isServerStreaming: true)
    /// Reads a backup back and compares it with its manifest, as a job. Each damaged range is an `io_error`
    /// event with the operation `verify`; a job that has found damage fails.
    public static let verify = RPCMethod<VerifyRequest, JobEvent>(
        "drivebackup.v1.Backups/Verify", isServerStreaming: true)
    /// Writes a backup, with what it lies on, to a new image or to a drive that nobody has open, as a job.
    public static let restore = RPCMethod<RestoreRequest, JobEvent>(
        "drivebackup.v1.Backups/Restore", isServerStreaming: true)
}
