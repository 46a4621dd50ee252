// swift-format-ignore-file
// Generated from proto/drivebackup/v1/jobs.proto by tools/generate. Never edited by hand.

internal import CWire

/// `drivebackup.v1.JobType`.
public struct JobType: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static let unspecified = Self(rawValue: 0)
    /// A copy of a drive at a point in time.
    public static let backup = Self(rawValue: 1)
    /// A backup is read back and compared with its manifest.
    public static let verify = Self(rawValue: 2)
    /// A backup is written to a new image or to a drive.
    public static let restore = Self(rawValue: 3)

    public static let allCases: [Self] = [
        .unspecified,
        .backup,
        .verify,
        .restore,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "backup"
        case 2: "verify"
        case 3: "restore"
        default: nil
        }
    }
}

/// `drivebackup.v1.JobState`.
public struct JobState: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static let unspecified = Self(rawValue: 0)
    /// Accepted; the point in time is not fixed yet.
    public static let created = Self(rawValue: 1)
    /// Copying.
    public static let running = Self(rawValue: 2)
    /// Not copying; `pause_reason` says why.
    public static let paused = Self(rawValue: 3)
    /// Done; others of its group are not.
    public static let waiting = Self(rawValue: 4)
    /// Done; waits for Finalize.
    public static let pending = Self(rawValue: 5)
    /// Failed or cancelled, cleaning up; or, with sync mode `none`, copying the last of what was saved.
    public static let aborting = Self(rawValue: 6)
    /// Ended; `result` says how.
    public static let concluded = Self(rawValue: 7)

    public static let allCases: [Self] = [
        .unspecified,
        .created,
        .running,
        .paused,
        .waiting,
        .pending,
        .aborting,
        .concluded,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "created"
        case 2: "running"
        case 3: "paused"
        case 4: "waiting"
        case 5: "pending"
        case 6: "aborting"
        case 7: "concluded"
        default: nil
        }
    }
}

/// `drivebackup.v1.JobResult`.
public struct JobResult: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// The job has not ended.
    public static let unspecified = Self(rawValue: 0)
    public static let completed = Self(rawValue: 1)
    /// Finished, but some ranges are missing in the target.
    public static let completedWithErrors = Self(rawValue: 2)
    public static let failed = Self(rawValue: 3)
    public static let cancelled = Self(rawValue: 4)

    public static let allCases: [Self] = [
        .unspecified,
        .completed,
        .completedWithErrors,
        .failed,
        .cancelled,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "completed"
        case 2: "completed_with_errors"
        case 3: "failed"
        case 4: "cancelled"
        default: nil
        }
    }
}

/// `drivebackup.v1.PauseReason`.
public struct PauseReason: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// Not paused.
    public static let unspecified = Self(rawValue: 0)
    /// Somebody asked for it.
    public static let user = Self(rawValue: 1)
    /// The error policy.
    public static let error = Self(rawValue: 2)

    public static let allCases: [Self] = [
        .unspecified,
        .user,
        .error,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "user"
        case 2: "error"
        default: nil
        }
    }
}

/// `drivebackup.v1.SyncMode`.
public struct SyncMode: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static let unspecified = Self(rawValue: 0)
    /// The whole drive.
    public static let full = Self(rawValue: 1)
    /// What the drive's top image itself holds; the target gets the same backing file.
    public static let top = Self(rawValue: 2)
    /// Only what the guest overwrites from now on, until the job is cancelled; the target's backing file is
    /// the drive's image.
    public static let none = Self(rawValue: 3)
    /// What a bitmap says has changed; the bitmap starts anew on success.
    public static let incremental = Self(rawValue: 4)
    /// What a bitmap says has changed.
    public static let bitmap = Self(rawValue: 5)

    public static let allCases: [Self] = [
        .unspecified,
        .full,
        .top,
        .none,
        .incremental,
        .bitmap,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "full"
        case 2: "top"
        case 3: "none"
        case 4: "incremental"
        case 5: "bitmap"
        default: nil
        }
    }
}

/// What a job does about an error of the drive or of the target.
public struct ErrorPolicy: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// As report.
    public static let unspecified = Self(rawValue: 0)
    /// The job fails.
    public static let report = Self(rawValue: 1)
    /// The range is left out and recorded as missing.
    public static let ignore = Self(rawValue: 2)
    /// The job is paused when there is no space, and fails otherwise.
    public static let enospc = Self(rawValue: 3)
    /// The job is paused.
    public static let stop = Self(rawValue: 4)
    /// As enospc.
    public static let auto = Self(rawValue: 5)

    public static let allCases: [Self] = [
        .unspecified,
        .report,
        .ignore,
        .enospc,
        .stop,
        .auto,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "report"
        case 2: "ignore"
        case 3: "enospc"
        case 4: "stop"
        case 5: "auto"
        default: nil
        }
    }
}

/// `drivebackup.v1.Side`.
public struct Side: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static let unspecified = Self(rawValue: 0)
    public static let source = Self(rawValue: 1)
    public static let target = Self(rawValue: 2)
    public static let staging = Self(rawValue: 3)

    public static let allCases: [Self] = [
        .unspecified,
        .source,
        .target,
        .staging,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "source"
        case 2: "target"
        case 3: "staging"
        default: nil
        }
    }
}

/// `drivebackup.v1.Operation`.
public struct Operation: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static let unspecified = Self(rawValue: 0)
    public static let read = Self(rawValue: 1)
    public static let write = Self(rawValue: 2)
    public static let flush = Self(rawValue: 3)
    /// Opening or creating.
    public static let open = Self(rawValue: 4)
    /// Closing, renaming, flushing the directory.
    public static let finish = Self(rawValue: 5)
    /// What was read is not what the manifest says.
    public static let verify = Self(rawValue: 6)

    public static let allCases: [Self] = [
        .unspecified,
        .read,
        .write,
        .flush,
        .open,
        .finish,
        .verify,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "read"
        case 2: "write"
        case 3: "flush"
        case 4: "open"
        case 5: "finish"
        case 6: "verify"
        default: nil
        }
    }
}

/// `drivebackup.v1.ErrorAction`.
public struct ErrorAction: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    public static let unspecified = Self(rawValue: 0)
    /// The job fails.
    public static let report = Self(rawValue: 1)
    /// The job goes on without these bytes.
    public static let ignore = Self(rawValue: 2)
    /// The job is paused.
    public static let stop = Self(rawValue: 3)
    /// The job has not failed: a warning.
    public static let warn = Self(rawValue: 4)

    public static let allCases: [Self] = [
        .unspecified,
        .report,
        .ignore,
        .stop,
        .warn,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "unspecified"
        case 1: "report"
        case 2: "ignore"
        case 3: "stop"
        case 4: "warn"
        default: nil
        }
    }
}

/// Bytes of the virtual disk.
public struct Range: WireMessage {
    public var offset: Int64 = 0
    public var length: Int64 = 0

    public init() {}

    public init(
        offset: Int64 = 0,
        length: Int64 = 0
    ) {
        self.offset = offset
        self.length = length
    }

    public static let messageName = "drivebackup.v1.Range"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_range())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.int64(1, "offset", &offset)
        coder.int64(2, "length", &length)
    }
}

/// How far a job is, in bytes. `current` never exceeds `total`.
public struct Progress: WireMessage {
    public var current: Int64 = 0
    public var total: Int64 = 0

    public init() {}

    public init(
        current: Int64 = 0,
        total: Int64 = 0
    ) {
        self.current = current
        self.total = total
    }

    public static let messageName = "drivebackup.v1.Progress"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_progress())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.int64(1, "current", &current)
        coder.int64(2, "total", &total)
    }
}

/// Local space that holds old content of the drive on its way to the target, in bytes.
public struct StagingUsage: WireMessage {
    public var used: Int64 = 0
    /// No more than this is taken: what the agent was told, or what the file system has to give.
    public var limit: Int64 = 0

    public init() {}

    public init(
        used: Int64 = 0,
        limit: Int64 = 0
    ) {
        self.used = used
        self.limit = limit
    }

    public static let messageName = "drivebackup.v1.StagingUsage"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_staging_usage())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.int64(1, "used", &used)
        coder.int64(2, "limit", &limit)
    }
}

/// Why a job failed.
public struct JobError: WireMessage {
    public var code: StatusCode = .ok
    /// A stable word for the cause, as in ErrorInfo.
    public var reason: String = ""
    /// What failed, on what, and why: a sentence for people.
    public var message: String = ""

    public init() {}

    public init(
        code: StatusCode = .ok,
        reason: String = "",
        message: String = ""
    ) {
        self.code = code
        self.reason = reason
        self.message = message
    }

    public static let messageName = "drivebackup.v1.JobError"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_job_error())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.enumeration(1, "code", &code)
        coder.string(2, "reason", &reason)
        coder.string(3, "message", &message)
    }
}

/// A running or ended operation.
public struct Job: WireMessage {
    public var id: String = ""
    public var type: JobType = .unspecified
    /// The drive it works on.
    public var drive: String = ""
    /// The target's absolute path.
    public var target: String = ""
    public var state: JobState = .unspecified
    /// Set once the job is concluded.
    public var result: JobResult = .unspecified
    public var progress: Progress? = nil
    /// The limit of background copying in bytes a second; 0 is unlimited.
    public var speed: Int64 = 0
    /// Why it failed; set only for failed jobs.
    public var error: JobError? = nil
    /// Set while paused.
    public var pauseReason: PauseReason = .unspecified
    /// What is copied; `full` where `top` was asked for of a drive without backing file.
    public var sync: SyncMode = .unspecified
    /// The target's format: "raw" or "qcow2".
    public var format: String = ""
    /// The instant whose content is copied, in nanoseconds since 1970-01-01 UTC; 0 before it is fixed.
    public var pointInTime: Int64 = 0
    /// When the job was accepted, in nanoseconds since 1970-01-01 UTC.
    public var createdAt: Int64 = 0
    /// When it was concluded, in nanoseconds since 1970-01-01 UTC; 0 before.
    public var endedAt: Int64 = 0
    /// The job waits for Finalize when its work is done.
    public var manualFinalize: Bool = false
    /// The job stays until Dismiss when it has ended.
    public var manualDismiss: Bool = false
    /// The sequence number of the job's last event.
    public var lastSequence: UInt64 = 0
    /// Set between the fixing of the point in time and the job's end.
    public var staging: StagingUsage? = nil
    /// Bytes of the drive that are not in the target because they could not be read or written.
    public var missingBytes: Int64 = 0
    /// Which these are, the first 256 ranges.
    public var missing: [Range] = []
    /// The error that the job is paused by; set while `pause_reason` is error.
    public var pauseError: IOErrorEvent? = nil
    /// Why nothing can be done to the target now (a process that was abandoned still uses it); empty when it
    /// can.
    public var targetBusy: String = ""
    /// How many operations have failed.
    public var errorCount: UInt64 = 0
    /// The last of these, merged as their events are, at most 16.
    public var errors: [IOErrorEvent] = []
    /// The manifest's absolute path; empty where there is none.
    public var manifest: String = ""
    /// The name of the group it was started in; empty for a job of its own.
    public var group: String = ""
    /// It completes or fails together with the other jobs of its group.
    public var grouped: Bool = false
    /// How often the agent was restarted while the job ran.
    public var restarts: UInt32 = 0
    public var onSourceError: ErrorPolicy = .unspecified
    public var onTargetError: ErrorPolicy = .unspecified
    /// The target shares blocks of the drive: they were cloned and not read, and the manifest has no digests.
    public var cloned: Bool = false

    public init() {}

    public init(
        id: String = "",
        type: JobType = .unspecified,
        drive: String = "",
        target: String = "",
        state: JobState = .unspecified,
        result: JobResult = .unspecified,
        progress: Progress? = nil,
        speed: Int64 = 0,
        error: JobError? = nil,
        pauseReason: PauseReason = .unspecified,
        sync: SyncMode = .unspecified,
        format: String = "",
        pointInTime: Int64 = 0,
        createdAt: Int64 = 0,
        endedAt: Int64 = 0,
        manualFinalize: Bool = false,
        manualDismiss: Bool = false,
        lastSequence: UInt64 = 0,
        staging: StagingUsage? = nil,
        missingBytes: Int64 = 0,
        missing: [Range] = [],
        pauseError: IOErrorEvent? = nil,
        targetBusy: String = "",
        errorCount: UInt64 = 0,
        errors: [IOErrorEvent] = [],
        manifest: String = "",
        group: String = "",
        grouped: Bool = false,
        restarts: UInt32 = 0,
        onSourceError: ErrorPolicy = .unspecified,
        onTargetError: ErrorPolicy = .unspecified,
        cloned: Bool = false
    ) {
        self.id = id
        self.type = type
        self.drive = drive
        self.target = target
        self.state = state
        self.result = result
        self.progress = progress
        self.speed = speed
        self.error = error
        self.pauseReason = pauseReason
        self.sync = sync
        self.format = format
        self.pointInTime = pointInTime
        self.createdAt = createdAt
        self.endedAt = endedAt
        self.manualFinalize = manualFinalize
        self.manualDismiss = manualDismiss
        self.lastSequence = lastSequence
        self.staging = staging
        self.missingBytes = missingBytes
        self.missing = missing
        self.pauseError = pauseError
        self.targetBusy = targetBusy
        self.errorCount = errorCount
        self.errors = errors
        self.manifest = manifest
        self.group = group
        self.grouped = grouped
        self.restarts = restarts
        self.onSourceError = onSourceError
        self.onTargetError = onTargetError
        self.cloned = cloned
    }

    public static let messageName = "drivebackup.v1.Job"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_job())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "id", &id)
        coder.enumeration(2, "type", &type)
        coder.string(3, "drive", &drive)
        coder.string(4, "target", &target)
        coder.enumeration(5, "state", &state)
        coder.enumeration(6, "result", &result)
        coder.message(7, "progress", &progress)
        coder.int64(8, "speed", &speed)
        coder.message(9, "error", &error)
        coder.enumeration(10, "pause_reason", &pauseReason)
        coder.enumeration(11, "sync", &sync)
        coder.string(12, "format", &format)
        coder.int64(13, "point_in_time", &pointInTime)
        coder.int64(14, "created_at", &createdAt)
        coder.int64(15, "ended_at", &endedAt)
        coder.bool(16, "manual_finalize", &manualFinalize)
        coder.bool(17, "manual_dismiss", &manualDismiss)
        coder.uint64(18, "last_sequence", &lastSequence)
        coder.message(19, "staging", &staging)
        coder.int64(20, "missing_bytes", &missingBytes)
        coder.messages(21, "missing", &missing)
        coder.message(22, "pause_error", &pauseError)
        coder.string(23, "target_busy", &targetBusy)
        coder.uint64(24, "error_count", &errorCount)
        coder.messages(25, "errors", &errors)
        coder.string(26, "manifest", &manifest)
        coder.string(27, "group", &group)
        coder.bool(28, "grouped", &grouped)
        coder.uint32(29, "restarts", &restarts)
        coder.enumeration(30, "on_source_error", &onSourceError)
        coder.enumeration(31, "on_target_error", &onTargetError)
        coder.bool(32, "cloned", &cloned)
    }
}

/// Something that happened to a job.
public struct JobEvent: WireMessage {
    /// What `event` of `JobEvent` can be.
    public enum Event: Sendable, Hashable {
        case started(Started)
        case stateChanged(StateChanged)
        case progress(Progress)
        case ioError(IOErrorEvent)
        case pending(Pending)
        case completed(Completed)
        case failed(Failed)
        case cancelled(Cancelled)
    }

    /// A number that grows from event to event of this agent, over its restarts, too.
    public var sequence: UInt64 = 0
    /// When, in nanoseconds since 1970-01-01 UTC.
    public var time: Int64 = 0
    public var jobID: String = ""
    public var event: Event? = nil

    public init() {}

    public init(
        sequence: UInt64 = 0,
        time: Int64 = 0,
        jobID: String = "",
        event: Event? = nil
    ) {
        self.sequence = sequence
        self.time = time
        self.jobID = jobID
        self.event = event
    }

    public static let messageName = "drivebackup.v1.JobEvent"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_job_event())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.uint64(1, "sequence", &sequence)
        coder.int64(2, "time", &time)
        coder.string(3, "job_id", &jobID)
        let _eventNumber = coder.oneof(4, is: _eventNumber)
        if _eventNumber ?? 4 == 4 {
            coder.oneofMessage(4, "started", &started)
        }
        if _eventNumber ?? 5 == 5 {
            coder.oneofMessage(5, "state_changed", &stateChanged)
        }
        if _eventNumber ?? 6 == 6 {
            coder.oneofMessage(6, "progress", &progress)
        }
        if _eventNumber ?? 7 == 7 {
            coder.oneofMessage(7, "io_error", &ioError)
        }
        if _eventNumber ?? 8 == 8 {
            coder.oneofMessage(8, "pending", &pending)
        }
        if _eventNumber ?? 9 == 9 {
            coder.oneofMessage(9, "completed", &completed)
        }
        if _eventNumber ?? 10 == 10 {
            coder.oneofMessage(10, "failed", &failed)
        }
        if _eventNumber ?? 11 == 11 {
            coder.oneofMessage(11, "cancelled", &cancelled)
        }
    }

    /// The number of the field that `event` is; 0 for none.
    private var _eventNumber: UInt32 {
        switch event {
        case .started?: 4
        case .stateChanged?: 5
        case .progress?: 6
        case .ioError?: 7
        case .pending?: 8
        case .completed?: 9
        case .failed?: 10
        case .cancelled?: 11
        case nil: 0
        }
    }

    /// `event` if it is `started`. Setting nil clears it only if it is that.
    public var started: Started? {
        get {
            if case .started(let value)? = event { value } else { nil }
        }
        set {
            if let newValue {
                event = .started(newValue)
            } else if case .started? = event {
                event = nil
            }
        }
    }

    /// `event` if it is `state_changed`. Setting nil clears it only if it is that.
    public var stateChanged: StateChanged? {
        get {
            if case .stateChanged(let value)? = event { value } else { nil }
        }
        set {
            if let newValue {
                event = .stateChanged(newValue)
            } else if case .stateChanged? = event {
                event = nil
            }
        }
    }

    /// `event` if it is `progress`. Setting nil clears it only if it is that.
    public var progress: Progress? {
        get {
            if case .progress(let value)? = event { value } else { nil }
        }
        set {
            if let newValue {
                event = .progress(newValue)
            } else if case .progress? = event {
                event = nil
            }
        }
    }

    /// `event` if it is `io_error`. Setting nil clears it only if it is that.
    public var ioError: IOErrorEvent? {
        get {
            if case .ioError(let value)? = event { value } else { nil }
        }
        set {
            if let newValue {
                event = .ioError(newValue)
            } else if case .ioError? = event {
                event = nil
            }
        }
    }

    /// `event` if it is `pending`. Setting nil clears it only if it is that.
    public var pending: Pending? {
        get {
            if case .pending(let value)? = event { value } else { nil }
        }
        set {
            if let newValue {
                event = .pending(newValue)
            } else if case .pending? = event {
                event = nil
            }
        }
    }

    /// `event` if it is `completed`. Setting nil clears it only if it is that.
    public var completed: Completed? {
        get {
            if case .completed(let value)? = event { value } else { nil }
        }
        set {
            if let newValue {
                event = .completed(newValue)
            } else if case .completed? = event {
                event = nil
            }
        }
    }

    /// `event` if it is `failed`. Setting nil clears it only if it is that.
    public var failed: Failed? {
        get {
            if case .failed(let value)? = event { value } else { nil }
        }
        set {
            if let newValue {
                event = .failed(newValue)
            } else if case .failed? = event {
                event = nil
            }
        }
    }

    /// `event` if it is `cancelled`. Setting nil clears it only if it is that.
    public var cancelled: Cancelled? {
        get {
            if case .cancelled(let value)? = event { value } else { nil }
        }
        set {
            if let newValue {
                event = .cancelled(newValue)
            } else if case .cancelled? = event {
                event = nil
            }
        }
    }
}

/// The point in time is fixed: what was written before the request is in the backup, what is written after
/// this event is not.
public struct Started: WireMessage {
    public var drive: String = ""
    /// The target's absolute path.
    public var target: String = ""
    /// The instant in nanoseconds since 1970-01-01 UTC.
    public var pointInTime: Int64 = 0
    public var sync: SyncMode = .unspecified
    /// The target's format.
    public var format: String = ""

    public init() {}

    public init(
        drive: String = "",
        target: String = "",
        pointInTime: Int64 = 0,
        sync: SyncMode = .unspecified,
        format: String = ""
    ) {
        self.drive = drive
        self.target = target
        self.pointInTime = pointInTime
        self.sync = sync
        self.format = format
    }

    public static let messageName = "drivebackup.v1.Started"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_started())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "drive", &drive)
        coder.string(2, "target", &target)
        coder.int64(3, "point_in_time", &pointInTime)
        coder.enumeration(4, "sync", &sync)
        coder.string(5, "format", &format)
    }
}

/// `drivebackup.v1.StateChanged`.
public struct StateChanged: WireMessage {
    public var state: JobState = .unspecified
    /// The state before; unspecified for a new job.
    public var previous: JobState = .unspecified
    /// Set when the new state is paused.
    public var pauseReason: PauseReason = .unspecified
    /// The error that the job is paused by; set when the reason is error.
    public var pauseError: IOErrorEvent? = nil

    public init() {}

    public init(
        state: JobState = .unspecified,
        previous: JobState = .unspecified,
        pauseReason: PauseReason = .unspecified,
        pauseError: IOErrorEvent? = nil
    ) {
        self.state = state
        self.previous = previous
        self.pauseReason = pauseReason
        self.pauseError = pauseError
    }

    public static let messageName = "drivebackup.v1.StateChanged"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_state_changed())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.enumeration(1, "state", &state)
        coder.enumeration(2, "previous", &previous)
        coder.enumeration(3, "pause_reason", &pauseReason)
        coder.message(4, "pause_error", &pauseError)
    }
}

/// An operation on the source, the target or staging failed, or is about to.
public struct IOErrorEvent: WireMessage {
    public var side: Side = .unspecified
    public var operation: Operation = .unspecified
    /// Where it failed, in bytes of the virtual disk.
    public var offset: Int64 = 0
    /// How many bytes; 0 where the failure is about no range.
    public var length: Int64 = 0
    /// The error number of the failed system call; 0 when there was none.
    public var errno: Int32 = 0
    /// What failed and why: a sentence for people.
    public var message: String = ""
    /// What was done about it.
    public var action: ErrorAction = .unspecified
    /// How many errors like this one the event stands for.
    public var count: UInt32 = 0

    public init() {}

    public init(
        side: Side = .unspecified,
        operation: Operation = .unspecified,
        offset: Int64 = 0,
        length: Int64 = 0,
        errno: Int32 = 0,
        message: String = "",
        action: ErrorAction = .unspecified,
        count: UInt32 = 0
    ) {
        self.side = side
        self.operation = operation
        self.offset = offset
        self.length = length
        self.errno = errno
        self.message = message
        self.action = action
        self.count = count
    }

    public static let messageName = "drivebackup.v1.IOErrorEvent"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_ioerror_event())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.enumeration(1, "side", &side)
        coder.enumeration(2, "operation", &operation)
        coder.int64(3, "offset", &offset)
        coder.int64(4, "length", &length)
        coder.int32(5, "errno", &errno)
        coder.string(6, "message", &message)
        coder.enumeration(7, "action", &action)
        coder.uint32(8, "count", &count)
    }
}

/// The job's work is done; it waits for Finalize.
public struct Pending: WireMessage {
    public init() {}

    public static let messageName = "drivebackup.v1.Pending"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_pending())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
    }
}

/// The target is whole, durable and has its name.
public struct Completed: WireMessage {
    /// `completed`, or `completed_with_errors`.
    public var result: JobResult = .unspecified
    /// Bytes of the drive that are not in the target.
    public var missingBytes: Int64 = 0
    public var progress: Progress? = nil
    /// Which these are, the first 256 ranges.
    public var missing: [Range] = []

    public init() {}

    public init(
        result: JobResult = .unspecified,
        missingBytes: Int64 = 0,
        progress: Progress? = nil,
        missing: [Range] = []
    ) {
        self.result = result
        self.missingBytes = missingBytes
        self.progress = progress
        self.missing = missing
    }

    public static let messageName = "drivebackup.v1.Completed"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_completed())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.enumeration(1, "result", &result)
        coder.int64(2, "missing_bytes", &missingBytes)
        coder.message(3, "progress", &progress)
        coder.messages(4, "missing", &missing)
    }
}

/// `drivebackup.v1.Failed`.
public struct Failed: WireMessage {
    public var error: JobError? = nil
    public var progress: Progress? = nil

    public init() {}

    public init(
        error: JobError? = nil,
        progress: Progress? = nil
    ) {
        self.error = error
        self.progress = progress
    }

    public static let messageName = "drivebackup.v1.Failed"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_failed())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.message(1, "error", &error)
        coder.message(2, "progress", &progress)
    }
}

/// `drivebackup.v1.Cancelled`.
public struct Cancelled: WireMessage {
    public var progress: Progress? = nil

    public init() {}

    public init(
        progress: Progress? = nil
    ) {
        self.progress = progress
    }

    public static let messageName = "drivebackup.v1.Cancelled"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_cancelled())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.message(1, "progress", &progress)
    }
}

/// `drivebackup.v1.ListJobsRequest`.
public struct ListJobsRequest: WireMessage {
    /// Ended jobs, too.
    public var all: Bool = false
    /// With `all`: of the ended jobs only those with a higher `last_sequence`.
    public var afterSequence: UInt64 = 0

    public init() {}

    public init(
        all: Bool = false,
        afterSequence: UInt64 = 0
    ) {
        self.all = all
        self.afterSequence = afterSequence
    }

    public static let messageName = "drivebackup.v1.ListJobsRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_list_jobs_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.bool(1, "all", &all)
        coder.uint64(2, "after_sequence", &afterSequence)
    }
}

/// `drivebackup.v1.ListJobsResponse`.
public struct ListJobsResponse: WireMessage {
    /// Ended jobs in the order of their ends, then those that have not been dismissed, oldest first.
    public var jobs: [Job] = []
    /// There are more: ask again after the `last_sequence` of the last one.
    public var more: Bool = false

    public init() {}

    public init(
        jobs: [Job] = [],
        more: Bool = false
    ) {
        self.jobs = jobs
        self.more = more
    }

    public static let messageName = "drivebackup.v1.ListJobsResponse"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_list_jobs_response())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.messages(1, "jobs", &jobs)
        coder.bool(2, "more", &more)
    }
}

/// `drivebackup.v1.GetJobRequest`.
public struct GetJobRequest: WireMessage {
    public var jobID: String = ""

    public init() {}

    public init(
        jobID: String = ""
    ) {
        self.jobID = jobID
    }

    public static let messageName = "drivebackup.v1.GetJobRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_get_job_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "job_id", &jobID)
    }
}

/// `drivebackup.v1.WatchJobRequest`.
public struct WatchJobRequest: WireMessage {
    public var jobID: String = ""
    /// Only events with a higher sequence number are sent; 0 for all that the agent still has.
    public var afterSequence: UInt64 = 0

    public init() {}

    public init(
        jobID: String = "",
        afterSequence: UInt64 = 0
    ) {
        self.jobID = jobID
        self.afterSequence = afterSequence
    }

    public static let messageName = "drivebackup.v1.WatchJobRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_watch_job_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "job_id", &jobID)
        coder.uint64(2, "after_sequence", &afterSequence)
    }
}

/// `drivebackup.v1.PauseJobRequest`.
public struct PauseJobRequest: WireMessage {
    public var jobID: String = ""

    public init() {}

    public init(
        jobID: String = ""
    ) {
        self.jobID = jobID
    }

    public static let messageName = "drivebackup.v1.PauseJobRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_pause_job_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "job_id", &jobID)
    }
}

/// `drivebackup.v1.ResumeJobRequest`.
public struct ResumeJobRequest: WireMessage {
    public var jobID: String = ""

    public init() {}

    public init(
        jobID: String = ""
    ) {
        self.jobID = jobID
    }

    public static let messageName = "drivebackup.v1.ResumeJobRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_resume_job_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "job_id", &jobID)
    }
}

/// `drivebackup.v1.CancelJobRequest`.
public struct CancelJobRequest: WireMessage {
    public var jobID: String = ""
    /// Give the job up at once, one of sync mode `none`, too.
    public var force: Bool = false

    public init() {}

    public init(
        jobID: String = "",
        force: Bool = false
    ) {
        self.jobID = jobID
        self.force = force
    }

    public static let messageName = "drivebackup.v1.CancelJobRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_cancel_job_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "job_id", &jobID)
        coder.bool(2, "force", &force)
    }
}

/// `drivebackup.v1.SetSpeedRequest`.
public struct SetSpeedRequest: WireMessage {
    public var jobID: String = ""
    /// Bytes a second; 0 is unlimited.
    public var speed: Int64 = 0

    public init() {}

    public init(
        jobID: String = "",
        speed: Int64 = 0
    ) {
        self.jobID = jobID
        self.speed = speed
    }

    public static let messageName = "drivebackup.v1.SetSpeedRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_set_speed_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "job_id", &jobID)
        coder.int64(2, "speed", &speed)
    }
}

/// `drivebackup.v1.FinalizeJobRequest`.
public struct FinalizeJobRequest: WireMessage {
    public var jobID: String = ""

    public init() {}

    public init(
        jobID: String = ""
    ) {
        self.jobID = jobID
    }

    public static let messageName = "drivebackup.v1.FinalizeJobRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_finalize_job_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "job_id", &jobID)
    }
}

/// `drivebackup.v1.DismissJobRequest`.
public struct DismissJobRequest: WireMessage {
    public var jobID: String = ""

    public init() {}

    public init(
        jobID: String = ""
    ) {
        self.jobID = jobID
    }

    public static let messageName = "drivebackup.v1.DismissJobRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_dismiss_job_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "job_id", &jobID)
    }
}

/// The methods of `drivebackup.v1.Jobs`.
public enum JobsMethods {
    /// Jobs that have not been dismissed; with `all` the last ended ones, too.
    public static let list = RPCMethod<ListJobsRequest, ListJobsResponse>(
        "drivebackup.v1.Jobs/List", isServerStreaming: false)
    /// One job; the last of that id when it has been dismissed.
    public static let get = RPCMethod<GetJobRequest, Job>(
        "drivebackup.v1.Jobs/Get", isServerStreaming: false)
    /// What happened to a job, from a point in the past, and then as it happens; ends with the job.
    public static let watch = RPCMethod<WatchJobRequest, JobEvent>(
        "drivebackup.v1.Jobs/Watch", isServerStreaming: true)
    /// Stops background copying until Resume.
    public static let pause = RPCMethod<PauseJobRequest, Job>(
        "drivebackup.v1.Jobs/Pause", isServerStreaming: false)
    /// Goes on after Pause.
    public static let resume = RPCMethod<ResumeJobRequest, Job>(
        "drivebackup.v1.Jobs/Resume", isServerStreaming: false)
    /// Gives the job up. One of sync mode `none` ends well by it: what was saved is copied, then the target
    /// is completed; a second Cancel gives it up.
    public static let cancel = RPCMethod<CancelJobRequest, Job>(
        "drivebackup.v1.Jobs/Cancel", isServerStreaming: false)
    /// Changes the limit of background copying.
    public static let setSpeed = RPCMethod<SetSpeedRequest, Job>(
        "drivebackup.v1.Jobs/SetSpeed", isServerStreaming: false)
    /// Ends a pending job.
    public static let finalize = RPCMethod<FinalizeJobRequest, Job>(
        "drivebackup.v1.Jobs/Finalize", isServerStreaming: false)
    /// Forgets a concluded job and frees its id.
    public static let dismiss = RPCMethod<DismissJobRequest, Job>(
        "drivebackup.v1.Jobs/Dismiss", isServerStreaming: false)
}
