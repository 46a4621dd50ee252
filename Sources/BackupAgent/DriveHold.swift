internal import BackupJobs
internal import BlockIO

/// What a job has of its drive and beside it, from the lease to the moment when it lets go.
struct DriveHold: Sendable {
    let lease: DriveLease
    let staging: Staging
    let sums: BlockSums
    var record: JobRecord?
    var job: BackupJob?
    /// The point in time is fixed, the drive's requests pass through the job.
    var isFixed = false

    /// Makes what there is to see of the drive as it was.
    func view(_ number: JobNumber, _ id: String) -> JobView? {
        guard isFixed, !lease.isBackup, let job else { return nil }
        return JobView(job: number, jobID: id, drive: lease.id, device: job.view)
    }
}
