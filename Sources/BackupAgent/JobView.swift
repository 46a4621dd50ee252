package import BlockIO

/// A running job's drive as it was at the point in time, for reading.
package struct JobView: Sendable {
    package var job: JobNumber
    package var jobID: String
    package var drive: String
    /// Fails all reads when the job has let go of the drive.
    package var device: any BlockDevice
}
