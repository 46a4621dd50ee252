package import BackupJobs
package import BlockIO
package import DiskImages

/// What a backup's target has to be, as data, so that a process of its own can be told it.
package struct TargetSpec: Sendable, Codable {
    package enum Mode: Sendable, Hashable, Codable {
        /// A new image; a file of that name is replaced at the end, if that was asked for.
        case new(overwrite: Bool)
        /// An image that exists.
        case existing
        /// What an agent that was killed or stopped has written for the same job.
        case resume(Resumption)
    }

    /// How a job's own target is known again.
    package struct Resumption: Sendable, Hashable, Codable {
        /// The device and inode of its file, and when that was made in nanoseconds since 1970 (0: not known).
        package var device: UInt64
        package var inode: UInt64
        package var birthTime: UInt64
        /// It was made by the job: `TARGET.partial` until it gets its name. Else it existed before.
        package var isNew: Bool
        /// A new one replaces what has its name.
        package var overwrites: Bool
        /// What was never written reads as zero.
        package var readsAsZero: Bool
        /// In bytes.
        package var clusterSize: UInt64
        /// What a new image names as what lies below it, and its format.
        package var backingPath: String?
        package var backingFormat: ImageFormat?
        /// What it is cloned from; nil: it is not.
        var cloneSource: CloneSource?
        /// The host may have been restarted since: then devices have other numbers.
        package var isOtherBoot = false
    }

    /// A file that the image names as what lies below it.
    package struct Backing: Sendable, Hashable, Codable {
        package var path: String
        package var format: ImageFormat
        /// Device and inode, of what it lies on, too.
        package var identities: [FileIdentity] = []
    }

    package var path: String
    package var mode: Mode
    /// nil, for an existing target only: found out.
    package var format: ImageFormat?
    /// The drive's size in bytes, which is the target's.
    package var size: UInt64
    package var sync: BackupSync
    /// What a new image gets as its backing file, and what an existing one must have where it matters.
    package var backing: Backing?
    /// What the client who asked may use.
    package var access: PathAccess
    package var job: JobNumber
    package var jobID: String
    /// Where manifests of targets are that have no directory of their own: devices.
    package var manifestDirectory = ""
    /// The drive's file, whose blocks a new raw target may share; nil: everything is copied.
    package var cloneSource: CloneSource?
    /// The content is no backup: a manifest of an earlier one goes.
    package var isRestored = false
}

extension JobIOError.Operation {
    /// A part of a target's `complete`. Of reads and writes the caller knows, and neither need be the end of the job.
    var isOfComplete: Bool { self == .flush || self == .finish }
}

/// A job's target, opened, checked and locked, and not written yet.
package protocol JobTarget: BackupTarget {
    var format: ImageFormat { get }
    /// Nobody stated the format, and the image looks like none: it was taken for raw.
    var isProbedRaw: Bool { get }
    /// What was never written reads as zero.
    var readsAsZero: Bool { get }
    /// Why nothing can be done to it now; nil when it can.
    var busy: String? { get }
    /// By which the next agent knows it again; nil: it does not go on with this one.
    var resumption: TargetSpec.Resumption? { get }
    /// In which part of `complete` the first error was; nil before there is one.
    var failedOperation: JobIOError.Operation? { get }
    /// The process that the target is in has ended while it made the target durable: nobody knows whether it is.
    var endedWhileFlushing: Bool { get }

    /// Where its manifest is; empty where it gets none.
    var manifestPath: String { get }

    /// Writes the target's manifest, durably. Final: it gets its name when the target is completed. Else at once: then the
    /// target is one that existed, and nothing was written to it yet.
    func putManifest(_ content: [UInt8], isFinal: Bool) async throws(BlockError)

    /// Gives the target up as `abandon` does, unless it is complete already or cannot be stopped any more
    /// from becoming so: then true. Returns within a few seconds, whatever the target does; what hangs is
    /// left behind and the file stays claimed until it returns. `atOnce`: returns in a moment where the
    /// target has requests that it does not answer, or is large; what is not done by then goes on in the background, outlives
    /// a killed agent, and `TargetOpener.busy` tells of it.
    func giveUp(keep: Bool, atOnce: Bool) async -> Bool

    /// Closes what is there as it is, for the next agent: nothing is flushed, since what that says must be heard, and
    /// nothing removed. Returns within a few seconds, whatever the target does.
    func leave() async
}

extension JobTarget {
    package var busy: String? { nil }
    package var resumption: TargetSpec.Resumption? { nil }
}

extension JobTarget {
    var endedWhileFlushing: Bool { false }

    func giveUp(keep: Bool) async -> Bool { await giveUp(keep: keep, atOnce: false) }
}

/// Opens targets, in this process or in one for each.
package protocol TargetOpener: Sendable {
    /// Checks what can be checked about a target without making or changing anything, and takes nothing: for groups, in which
    /// the first target is not to be made when the second one cannot be.
    func check(_ spec: TargetSpec) async throws(AgentError)

    /// Checks everything about the target, then opens it or, last of all, makes it. When it throws, nothing
    /// was made or changed.
    func open(_ spec: TargetSpec) async throws(AgentError) -> any JobTarget

    /// Takes the files of a target that is about to be reopened, so that nobody else has them meanwhile; at once. `release`
    /// gives them back, as does a target that was opened when it ends.
    func reserve(_ spec: TargetSpec)
    func release(_ spec: TargetSpec)

    /// Removes what an earlier agent has made for a target, as soon as nobody uses it; in the background, and over
    /// restarts.
    func removeLater(_ file: TargetLeftover) async

    /// Opens the target of a job that an earlier agent has left; `spec` has the mode `resume`. Throws `.targetBusy` or
    /// `.targetLocked` while that one may still write to it, `.targetLost` when it is gone; what was reserved stays so.
    func reopen(_ spec: TargetSpec) async throws(AgentError) -> ReopenedTarget

    /// Why nothing can be done to the target of a job, ended or not: a process still uses it.
    func busy(_ job: JobNumber) -> String?
}

extension TargetOpener {
    package func busy(_ job: JobNumber) -> String? { nil }
    package func removeLater(_ file: TargetLeftover) async {}
}

/// What was found of a target that an earlier agent has left.
package enum ReopenedTarget: Sendable {
    /// To be written on, or published.
    case open(any JobTarget)
    /// It has its name, durably: it is complete.
    case published
}
