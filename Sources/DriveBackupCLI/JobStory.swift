internal import DriveBackupClient

/// What is known of a job, put together from its events and, where there is one, the job as the agent shows it.
struct JobStory: Hashable {
    enum End: Hashable {
        case completed(JobResult, missingBytes: Int64, missing: [Range] = [])
        case failed(JobError)
        case cancelled
    }

    var id: String
    var type = JobType.backup
    var drive = ""
    var target = ""
    var format = ""
    var sync = SyncMode.unspecified
    var state = JobState.unspecified
    var pauseReason = PauseReason.unspecified
    /// What it is paused by, where the reason is an error.
    var pauseError: IOErrorEvent?
    /// Everything is copied, and somebody has to finalize the job.
    var awaitsFinalize = false
    /// Bytes done, of `total`.
    var current: Int64 = 0
    var total: Int64 = 0
    /// Nanoseconds since 1970; 0 while not known.
    var startedAt: Int64 = 0
    var endedAt: Int64 = 0
    var end: End?
    /// The number of the last event.
    var lastSequence: UInt64 = 0

    init(id: String) { self.id = id }

    /// What `job` tells, as if all its events had been seen.
    init(_ job: Job) {
        id = job.id
        if !job.type.isUnspecified { type = job.type }
        drive = job.drive
        target = job.target
        format = job.format
        sync = job.sync
        state = job.state
        pauseReason = job.pauseReason
        pauseError = job.pauseError
        awaitsFinalize = job.state == .pending && job.manualFinalize
        startedAt = job.pointInTime
        endedAt = job.endedAt
        lastSequence = job.lastSequence
        if let progress = job.progress { note(progress) }
        guard job.state == .concluded else { return }
        switch job.result {
        case .unspecified: break
        case .cancelled: end = .cancelled
        case .failed: end = .failed(job.error ?? JobError())
        default:
            end = .completed(job.result, missingBytes: job.missingBytes, missing: job.missing)
        }
    }

    /// As if its end, and what led to it, had not been seen.
    mutating func forgetEnd() {
        guard end != nil || state == .concluded else { return }
        (end, state) = (nil, .running)
    }

    mutating func apply(_ event: JobEvent) {
        if event.sequence > 0 { lastSequence = event.sequence }
        switch event.event {
        case .started(let started):
            drive = started.drive
            target = started.target
            format = started.format
            sync = started.sync
            startedAt = started.pointInTime
        case .stateChanged(let change):
            state = change.state
            pauseReason = change.pauseReason
            pauseError = change.pauseError
            if state != .pending { awaitsFinalize = false }
        case .progress(let progress):
            note(progress)
        case .completed(let completed):
            if let progress = completed.progress { note(progress) }
            finish(
                .completed(
                    completed.result, missingBytes: completed.missingBytes, missing: completed.missing), event
            )
        case .failed(let failed):
            if let progress = failed.progress { note(progress) }
            finish(.failed(failed.error ?? JobError()), event)
        case .cancelled(let cancelled):
            if let progress = cancelled.progress { note(progress) }
            finish(.cancelled, event)
        case .pending:
            awaitsFinalize = true
        case .ioError, nil:
            break
        }
    }

    private mutating func note(_ progress: Progress) {
        current = progress.current
        total = progress.total
    }

    private mutating func finish(_ end: End, _ event: JobEvent) {
        self.end = end
        endedAt = event.time
    }

    /// How the process ends when the job has.
    var exitStatus: ExitStatus {
        switch end {
        case .completed(let result, _, _): ExitStatus(result)
        case .cancelled: .cancelled
        case .failed, nil: .failed
        }
    }
}
