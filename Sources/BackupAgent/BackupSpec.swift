package import BackupJobs
package import DiskImages

/// What a client asked for when it started a backup, checked word by word.
package struct BackupSpec: Sendable, Hashable, Codable {
    package enum Mode: Sendable, Hashable, Codable { case absolutePaths, existing }

    /// What kind of job it is.
    package enum Work: Sendable, Hashable, Codable {
        case backup
        /// `target` is read back.
        case verify
        /// The backup of that path is written to `target`, or to `drive` when that is empty.
        case restore(from: String)
    }

    package var work = Work.backup
    /// Empty where the job is about none.
    package var drive: String
    /// Absolute.
    package var target: String
    package var sync: BackupSync
    package var checksum = DigestAlgorithm.xxh3
    /// What can share the drive's blocks is cloned; nil, in jobs of earlier agents: it is not.
    package var clones: Bool? = true
    /// nil: found out for an existing target, else the drive's own.
    package var format: ImageFormat?
    package var mode = Mode.absolutePaths
    package var overwrites = false
    /// Not negative; 0 is unlimited.
    package var speedBytesPerSecond: Int64 = 0
    /// The job's id.
    package var jobID: String
    /// Empty: none.
    package var requestKey = ""
    package var waitsForFinalize = false
    package var waitsForDismiss = false
    /// What there is of a new target stays when the job does not complete.
    package var keepsTarget = false
    package var saveFailure = BackupJob.Options.SaveFailure.breakSnapshot
    /// Zero: for ever.
    package var saveTimeout = Duration.seconds(5)
    package var stagingFull = BackupJob.Options.StagingFull.fail
    package var onSourceError = ErrorPolicy.report
    package var onTargetError = ErrorPolicy.report
    /// The jobs of its group complete all, or none.
    package var isGrouped = false

    package init(drive: String, target: String, sync: BackupSync, jobID: String? = nil) {
        self.drive = drive
        self.target = target
        self.sync = sync
        self.jobID = jobID ?? drive
    }
}

/// What a client is told about a job.
package struct JobInfo: Sendable, Hashable {
    package var id: String
    package var type = BackupSpec.Work.backup
    package var drive: String
    package var target: String
    package var state: JobState
    package var result: JobResult?
    package var progress: JobProgress
    package var speedBytesPerSecond: Int64
    package var error: AgentError?
    package var pauseReason: PauseReason?
    package var sync: BackupSync
    package var format: ImageFormat?
    /// Nanoseconds since 1970-01-01 UTC, as the other times; 0 before it is known.
    package var pointInTime: Int64 = 0
    package var createdAt: Int64
    package var endedAt: Int64 = 0
    package var waitsForFinalize: Bool
    package var waitsForDismiss: Bool
    package var onSourceError = ErrorPolicy.report
    package var onTargetError = ErrorPolicy.report
    /// What the target lacks, and the first ranges of it.
    package var missing = BackupJob.Missing()
    /// What the job is paused by, where the reason is an error.
    package var pauseError: JobIOError?
    /// How many operations have failed.
    package var errorCount: UInt64 = 0
    /// The last of these, merged as their events are.
    package var errors: [JobIOError] = []
    /// The number of its last event.
    package var lastSequence: UInt64 = 0
    /// The name of the group it was started in; empty for a job of its own.
    package var group = ""
    package var isGrouped = false
    /// How often the agent was restarted while the job ran.
    package var restarts: UInt32 = 0
    /// nil before the job has staging, and after its end.
    package var staging: Staging.Usage?
    /// Why nothing can be done to the target now; nil when it can.
    package var targetBusy: String?
    /// A part of the target was cloned.
    package var isCloned = false
    /// The manifest's path; empty where there is none.
    package var manifest = ""
}
