internal import DriveBackupClient

/// How the process ends: what scripts see.
enum ExitStatus: Int32, Sendable {
    /// Done.
    case done = 0
    /// It failed.
    case failed = 1
    /// The backup finished, but some ranges are missing in it.
    case incomplete = 3
    /// The job was cancelled.
    case cancelled = 4
    /// The command line, or a value in it, is not right. (sysexits.h, EX_USAGE.)
    case usage = 64
    /// The agent cannot be reached. (EX_UNAVAILABLE.)
    case unreachable = 69
    /// The agent does not allow it. (EX_NOPERM.)
    case denied = 77
    /// Hung up, interrupted, broken pipe or terminated: 128 and the signal's number, as shells count.
    case hungUp = 129
    case interrupted = 130
    case brokenPipe = 141
    case terminated = 143

    /// The status for what the agent answered.
    init(_ status: RPCStatus) {
        switch status.code {
        case .ok: self = .done
        // Somebody cancelled the job before it had started.
        case .aborted where status.reason == "JOB_CANCELLED": self = .cancelled
        case .invalidArgument: self = .usage
        case .unavailable: self = .unreachable
        case .permissionDenied, .unauthenticated: self = .denied
        default: self = .failed
        }
    }

    /// The status for how a job ended. A result that this client does not know counts as failed.
    init(_ result: JobResult) {
        switch result {
        case .completed: self = .done
        case .completedWithErrors: self = .incomplete
        case .cancelled: self = .cancelled
        default: self = .failed
        }
    }
}
