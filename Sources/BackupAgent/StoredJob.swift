internal import BackupJobs
internal import DiskImages

/// A job that runs, as the agent remembers it over a restart: all that cannot be seen in its record, its target and its
/// drive.
///
/// It is written as JSON. A later version must read what an earlier one has written, or an upgrade would end the jobs that
/// run: what is added here, or to the types that it has, is optional.
struct StoredJob: Codable, Sendable, Hashable {
    /// How far it has come.
    enum Phase: Codable, Sendable, Hashable {
        case running
        case paused(PauseReason)
        /// Of sync `none`, after its good end was asked for.
        case finishing
        /// All is copied; others of its group are not as far.
        case waiting
        /// All is copied; waits for finalize.
        case pending
        /// The target is being made durable.
        case finalizing
        /// The target is durable and only its name is missing, as are those of its group: it completes.
        case decided
        case cancelling
        case failing(AgentError)

        /// It needs nothing of its drive any more.
        var isOver: Bool {
            switch self {
            case .running, .paused, .finishing, .waiting, .pending, .finalizing: false
            case .decided, .cancelling, .failing: true
            }
        }
    }

    /// The top file of what is copied: the drive's, or that of a backup that is read back.
    struct DriveFile: Codable, Sendable, Hashable {
        var path: String
        var device: UInt64
        var inode: UInt64
        /// The drive's, in bytes.
        var size: UInt64
    }

    /// The event that told of the job's start.
    struct Started: Codable, Sendable, Hashable {
        var sequence: UInt64
        var time: Int64
    }

    var number: UInt64
    var spec: BackupSpec
    /// What the client who started it may use.
    var access: PathAccess
    /// Empty: none.
    var group: String
    /// The target's true path.
    var target: String
    var format: ImageFormat
    var sync: BackupSync
    /// nil where the target is no file of the job's own: nothing of it is reopened.
    var resumption: TargetSpec.Resumption?
    var drive: DriveFile
    /// Nanoseconds since 1970-01-01 UTC, as all times.
    var pointInTime: Int64
    var createdAt: Int64
    var speedBytesPerSecond: Int64
    var restarts: UInt32
    var started: Started?
    var phase: Phase
    /// What has paused the job, where it was an error.
    var pauseError: JobIOError?
    /// How many operations have failed without ending the job, and the last errors; nil: none.
    var errorCount: UInt64?
    var errors: [JobIOError]?
    /// What the target lacks by now; nil: nothing.
    var missing: BackupJob.Missing?
    /// A part of the target was cloned; nil: not by now.
    var isCloned: Bool?
    /// The manifest's path; nil where there is none.
    var manifest: String?

    /// The next agent goes on with it. What only reads a backup is begun anew by whoever wants it.
    var goesOn: Bool { spec.work == .backup && resumption != nil }

    /// What opens its target again, by what is `known` of it.
    func targetSpec(
        _ known: TargetSpec.Resumption, isOtherBoot: Bool, manifestDirectory: String
    ) -> TargetSpec {
        var known = known
        known.isOtherBoot = isOtherBoot
        // The manifest of a device is known by the name that the client gave it.
        return TargetSpec(
            path: known.isNew ? target : spec.target, mode: .resume(known), format: format, size: drive.size,
            sync: sync, access: access,
            job: JobNumber(value: number), jobID: spec.jobID, manifestDirectory: manifestDirectory,
            cloneSource: known.cloneSource, isRestored: spec.work != .backup)
    }
}
