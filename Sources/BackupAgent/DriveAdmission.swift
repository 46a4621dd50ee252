internal import BackupJobs
package import BlockIO
internal import Synchronization

/// What a job that goes on finds out about its drive when that is opened again: whether the host is still the same, and
/// whether nobody else wrote to the drive in between (DATAPATH.md rule 15).
///
/// It looks when the drive's lock is taken, so that nothing of the earlier agent can still land, and before the first
/// write of this one, which it has noted in the job's record.
package final class DriveAdmission: Sendable {
    /// What it found.
    enum Finding: Sendable {
        /// The drive is as it was left; the record is of its engine.
        case unchanged(JobRecord)
        /// The job has failed. What there is of the record is to be removed.
        case refused(AgentError)
    }

    private let job: StoredJob
    private let recordPath: String
    private let state = Mutex<Finding?>(nil)

    init(of job: StoredJob, files: JobFiles) {
        self.job = job
        recordPath = files.recordPath(JobNumber(value: job.number), id: job.spec.jobID)
    }

    /// nil when the drive's file has not been opened.
    var finding: Finding? { state.withLock { $0 } }

    /// Examines the drive's top file, locked and not written yet. On its engine.
    package func examine(_ file: HostFile) async {
        guard job.goesOn, !job.phase.isOver else { return }
        let finding = await find(file)
        state.withLock { $0 = finding }
    }

    private func find(_ file: HostFile) async -> Finding {
        let (path, engine) = (recordPath, file.engine)
        let looked: Result<(record: JobRecord, modified: UInt64?), BlockError> = await engine.blocking {
            Result { () throws(BlockError) in
                (try JobRecord.open(path, engine: engine), try file.modificationTime())
            }
        }
        let (record, modified): (JobRecord, UInt64?)
        do throws(BlockError) { (record, modified) = try looked.get() } catch {
            return .refused(refusal(error))
        }
        let change = change(of: file, record.changeTimes, modified: modified)
        // An agent that is killed before it could tell must not be followed by one that sees nothing any more.
        if change != nil { record.setBroken() }
        file.noteChanges(in: record.changeTimes)
        if let change { return .refused(change) }
        return .unchanged(record)
    }

    /// Why the drive is not what it was; nil when it is.
    private func change(
        of file: HostFile, _ times: ChangeTimes, modified: UInt64?
    ) -> AgentError? {
        let why: String
        if file.identity.device != job.drive.device || file.identity.inode != job.drive.inode {
            why = "\(file.name) is another file than \(job.drive.path) was"
        } else if let modified, modified > times.latest {
            why = "\(file.name) was changed by somebody else while the agent was not running"
        } else {
            return nil
        }
        return AgentError(
            .sourceChanged, "Couldn't go on with the backup of \(job.spec.drive): \(why)",
            subject: job.spec.drive)
    }

    private func refusal(_ error: BlockError) -> AgentError {
        let isOtherBoot = error.code == .notFound || error.code == .invalid
        return isOtherBoot
            ? AgentError(hostRestartedDuring: job)
            : AgentError(error, of: .staging, subject: job.spec.drive)
    }
}

extension AgentError {
    /// The job's record died with the host.
    init(hostRestartedDuring job: StoredJob) {
        self.init(
            .hostRestarted,
            "The host, or its /run, was restarted before the backup of \(job.spec.drive) had ended: its point in time is "
                + "lost (start it again)", subject: job.spec.drive)
    }
}
