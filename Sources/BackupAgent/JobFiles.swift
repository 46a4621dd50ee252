internal import BackupJobs
internal import BlockIO
internal import Glibc

/// The files that jobs need beside their targets: a record in the runtime directory, which outlives a killed agent and not
/// the host, and staging, which may be large.
package struct JobFiles: Sendable {
    /// Of the agent alone, as the other.
    package let recordDirectory: String
    package let stagingDirectory: String
    /// What one job may take of staging, in bytes; nil: what the file system has to give.
    package let stagingLimit: UInt64?
    /// Where manifests of devices are.
    package let manifestDirectory: String

    package init(
        recordDirectory: String, stagingDirectory: String, stagingLimit: UInt64? = nil,
        manifestDirectory: String? = nil
    ) {
        self.manifestDirectory = manifestDirectory ?? stagingDirectory + "/manifests"
        self.recordDirectory = recordDirectory
        self.stagingDirectory = stagingDirectory
        self.stagingLimit = stagingLimit
    }

    private static let suffixes = (record: ".record", staging: ".staging", sums: ".sums")

    /// A file's name holds the job's number, by which it is unique, and for people as much of its id as fits.
    private static func name(_ job: JobNumber, _ id: String) -> String { "\(job.value)-\(id.prefix(100))" }

    func recordPath(_ job: JobNumber, id: String) -> String {
        "\(recordDirectory)/\(Self.name(job, id))\(Self.suffixes.record)"
    }

    /// Makes the record of a job. Blocks.
    func makeRecord(
        _ job: JobNumber, id: String, driveSize: UInt64, clusterSize: UInt64, engine: any IOEngine
    ) throws(BlockError) -> JobRecord {
        try JobRecord.create(
            at: recordPath(job, id: id), driveSize: driveSize, clusterSize: clusterSize, engine: engine)
    }

    /// Makes the staging of a job.
    func makeStaging(
        _ job: JobNumber, id: String, driveSize: UInt64, on engine: any IOEngine
    ) async throws(BlockError) -> Staging {
        try await Staging.create(
            at: "\(stagingDirectory)/\(Self.name(job, id))\(Self.suffixes.staging)", driveSize: driveSize,
            limit: stagingLimit, on: engine)
    }

    /// Makes the file of the digests of what a job reads.
    func makeSums(
        _ job: JobNumber, id: String, driveSize: UInt64, algorithm: DigestAlgorithm, on engine: any IOEngine
    ) async throws(BlockError) -> BlockSums {
        try await BlockSums.create(
            at: "\(stagingDirectory)/\(Self.name(job, id))\(Self.suffixes.sums)", driveSize: driveSize,
            algorithm: algorithm, on: engine)
    }

    /// Makes the record directory, and removes what an agent that was killed has left in both. Returns a sentence for each
    /// job it was of. Blocks; throws a sentence for the operator.
    package func prepare() throws(AgentError) -> [String] {
        try Self.makeDirectory(recordDirectory)
        let files = [
            (recordDirectory, Self.suffixes.record), (stagingDirectory, Self.suffixes.staging),
            (stagingDirectory, Self.suffixes.sums),
        ].map { directory, suffix in
            (directory, suffix, Self.names(in: directory).filter { $0.hasSuffix(suffix) })
        }
        var jobs: Set<String> = []
        for (directory, suffix, names) in files {
            for name in names {
                guard unlink("\(directory)/\(name)") == 0 || errno == ENOENT || errno == EROFS else {
                    throw AgentError(
                        .ioError,
                        "Couldn't remove \(directory)/\(name), left by an agent that was killed: "
                            + BlockError.describe(errno: errno), subject: directory)
                }
                jobs.insert(String(name.dropLast(suffix.count)))
            }
        }
        return jobs.sorted().map { job in
            let id = job.drop { $0 != "-" }.dropFirst()
            return
                "The job \(id) had not ended when the agent was killed; its staging is removed and it does not go on "
                + "(a TARGET.partial it may have left is still there)"
        }
    }

    /// Makes a directory of the agent's own where it is missing. Blocks.
    static func makeDirectory(_ path: String) throws(AgentError) {
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else {
            throw AgentError(
                .ioError, "Couldn't make the directory \(path): \(BlockError.describe(errno: errno))",
                subject: path)
        }
    }

    private static func names(in path: String) -> [String] {
        // What cannot be listed cannot be used either; the first job says so.
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            names.append(name)
        }
        return names
    }
}
