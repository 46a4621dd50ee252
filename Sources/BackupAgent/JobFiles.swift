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

    func stagingPath(_ job: JobNumber, id: String) -> String {
        "\(stagingDirectory)/\(Self.name(job, id))\(Self.suffixes.staging)"
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
            at: stagingPath(job, id: id), driveSize: driveSize, limit: stagingLimit, on: engine)
    }

    /// Makes the file of the digests of what a job reads.
    func makeSums(
        _ job: JobNumber, id: String, driveSize: UInt64, algorithm: DigestAlgorithm, on engine: any IOEngine
    ) async throws(BlockError) -> BlockSums {
        try await BlockSums.create(
            at: sumsPath(job, id: id), driveSize: driveSize, algorithm: algorithm, on: engine)
    }

    /// Opens the digests that a job has left. A late write of the agent before does no harm: it is what stands there.
    func openSums(
        _ job: JobNumber, id: String, driveSize: UInt64, algorithm: DigestAlgorithm, on engine: any IOEngine
    ) async throws(BlockError) -> BlockSums {
        try await BlockSums.open(
            sumsPath(job, id: id), driveSize: driveSize, algorithm: algorithm, on: engine)
    }

    private func sumsPath(_ job: JobNumber, id: String) -> String {
        "\(stagingDirectory)/\(Self.name(job, id))\(Self.suffixes.sums)"
    }

    /// How long an agent that was killed may take to let go of staging.
    private static let patience = Duration.seconds(3)

    /// Opens the staging that a job has left, as soon as nothing of the agent before can land there any more.
    func openStaging(
        _ job: JobNumber, id: String, driveSize: UInt64, on engine: any IOEngine
    ) async throws(BlockError) -> Staging {
        let begin = ContinuousClock.now
        while true {
            do throws(BlockError) {
                return try await Staging.open(
                    at: stagingPath(job, id: id), driveSize: driveSize, limit: stagingLimit, on: engine)
            } catch {
                guard error.code == .locked, ContinuousClock.now - begin < Self.patience else { throw error }
                // The agent is being started: nobody cancels that.
                try? await Task.sleep(for: .milliseconds(20))
            }
        }
    }

    /// Makes the record directory, and removes what an agent that was killed has left in both, but not of the jobs `known`,
    /// which go on. Returns a sentence for each job it was of. Blocks; throws a sentence for the operator.
    package func prepare(keeping known: [(job: JobNumber, id: String)] = []) throws(AgentError) -> [String] {
        try Self.makeDirectory(recordDirectory)
        let keptNames = Set(known.map { Self.name($0.job, $0.id) })
        let files = [
            (recordDirectory, Self.suffixes.record), (stagingDirectory, Self.suffixes.staging),
            (stagingDirectory, Self.suffixes.sums),
        ].map { directory, suffix in
            (directory, suffix, Self.names(in: directory).filter { $0.hasSuffix(suffix) })
        }
        var jobs: Set<String> = []
        for (directory, suffix, names) in files {
            for name in names where !keptNames.contains(String(name.dropLast(suffix.count))) {
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
                "The job \(id) was being started or had ended when the agent was killed; its staging is removed (a "
                + "TARGET.partial it may have left is still there)"
        }
    }

    /// Removes what a job that does not go on has left. Blocks; what cannot be removed is when the agent starts again.
    func remove(_ job: JobNumber, id: String) {
        unlink(recordPath(job, id: id))
        unlink(stagingPath(job, id: id))
        unlink(sumsPath(job, id: id))
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
