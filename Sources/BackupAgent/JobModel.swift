package import BackupJobs
internal import BlockIO

/// Where a job is in its life. Raw values are those of `drivebackup.v1.JobState`.
package enum JobState: Int32, Sendable, Hashable, CaseIterable {
    case created = 1
    case running
    case paused
    case waiting
    case pending
    case aborting
    case concluded

    /// The word people see.
    var word: String { "\(self)" }
}

/// How a job ended. Raw values are those of `drivebackup.v1.JobResult`.
package enum JobResult: Int32, Sendable, Hashable, CaseIterable {
    case completed = 1
    case completedWithErrors
    case failed
    case cancelled
}

/// Why a job is paused. Raw values are those of `drivebackup.v1.PauseReason`.
package enum PauseReason: Int32, Sendable, Hashable, Codable {
    case user = 1
    case error
}

/// What can be done to a job.
package enum JobVerb: String, Sendable, Hashable, CaseIterable {
    case pause, resume, cancel, finalize, dismiss
    case setSpeed = "set-speed"
}

/// What a backup copies, of the modes that exist so far. Raw values are those of `drivebackup.v1.SyncMode`.
package enum BackupSync: Int32, Sendable, Hashable, Codable {
    case full = 1
    case top
    case none
}

/// A job's number inside one run of the agent. Ids are used again, numbers never.
package struct JobNumber: Sendable, Hashable, Comparable, Codable {
    let value: UInt64

    package static func < (one: JobNumber, other: JobNumber) -> Bool { one.value < other.value }
}

/// How far a job is, in bytes; `current` never exceeds `total`.
package struct JobProgress: Sendable, Hashable {
    var current: UInt64
    var total: UInt64

    static let none = JobProgress(current: 0, total: 0)
}

/// A failed operation of a job, as its `io_error` event tells it.
package struct JobIOError: Sendable, Hashable, Codable {
    /// Raw values are those of `drivebackup.v1.Side`.
    package enum Side: Int32, Sendable, Hashable, Codable { case source = 1, target, staging }
    /// Raw values are those of `drivebackup.v1.Operation`.
    package enum Operation: Int32, Sendable, Hashable, Codable {
        case read = 1, write, flush, open, finish, verify
    }
    /// What was done about it. Raw values are those of `drivebackup.v1.ErrorAction`.
    package enum Action: Int32, Sendable, Hashable, Codable { case report = 1, ignore, stop, warn }

    var side: Side
    var operation: Operation
    var range: ByteRange?
    var errno: Int32
    var message: String
    var action = Action.report
    /// How many errors like this one it stands for; then `range` spans them all.
    var count: UInt32 = 1
}

/// Why a job failed: what its clients are told, and the operation behind it where there was one.
package struct JobFailure: Sendable, Hashable {
    var error: AgentError
    var ioError: JobIOError?

    /// Old content was not saved, or cannot be read any more.
    var isPointInTimeLost: Bool { ioError?.side == .staging }
}

/// Something that happened to a job.
package struct JobEvent: Sendable, Hashable {
    var sequence: UInt64
    /// Nanoseconds since 1970-01-01 UTC.
    var time: Int64
    var job: JobNumber
    var jobID: String
    var kind: Kind

    package enum Kind: Sendable, Hashable {
        case started(Started)
        /// `pauseError` is what the job is paused by, where the reason is an error.
        case stateChanged(
            JobState, previous: JobState?, pauseReason: PauseReason?, pauseError: JobIOError? = nil)
        case progress(JobProgress)
        case ioError(JobIOError)
        case pending
        /// With what the target lacks; then the job has completed with errors.
        case completed(JobProgress, missing: BackupJob.Missing = BackupJob.Missing())
        case failed(AgentError, JobProgress)
        case cancelled(JobProgress)

        var isProgress: Bool {
            if case .progress = self { true } else { false }
        }

        /// Nothing follows this event in its job's life.
        var isEnd: Bool {
            switch self {
            case .completed, .failed, .cancelled: true
            default: false
            }
        }
    }

    package struct Started: Sendable, Hashable {
        var drive: String
        var target: String
        /// Nanoseconds since 1970-01-01 UTC.
        var pointInTime: Int64
        var sync: BackupSync
        var format: String
    }
}
