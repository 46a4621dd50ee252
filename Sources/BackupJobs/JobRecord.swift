package import BlockIO

/// What is known of a job's clusters and blocks, in memory that outlives a killed agent: a mapped file on tmpfs.
package final class JobRecord: Sendable {
    package init() {}
    /// Makes the record of a job: a new file at `path`, replacing an old one. Blocks; call it inside `IOEngine.blocking`.
    /// `clusterSize` is the job's.
    package static func create(
        at path: String, driveSize: UInt64, clusterSize: UInt64, engine: any IOEngine
    ) throws(BlockError) -> JobRecord { JobRecord() }

    /// Removes the file. Blocks.
    package func remove() {}
}
