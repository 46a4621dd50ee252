internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Logging

// Verify and restore are copies like any other: the backup is the drive that is copied, a drive without guest and without
// name, and its digests are taken as they are of every copy. A verify copies to nowhere; what cannot be read is noted, so
// that it goes on to the end. What was read is compared with the manifest when all of it was: before a new image gets its
// name, that is.

extension JobManager {
    // MARK: The backup

    /// Opens the backup that a job reads, in place of a drive.
    func openBackup(_ number: JobNumber, _ access: PathAccess) async throws(AgentError) -> DriveLease {
        guard let spec = records[number]?.spec else { throw cancelledAtStart("") }
        var path = spec.target
        if case .restore(let from) = spec.work { path = from }
        let opening = BackupOpening(
            path: path, access: access, manifestDirectory: files.manifestDirectory,
            engine: try await drives.readingEngine(for: path),
            drive: spec.drive.isEmpty ? nil : (spec.drive, await drives.topFile(of: spec.drive)))
        let backup = try await unlessStopped(number) { () async throws(AgentError) in
            try await opening.open(withChain: spec.work != .verify)
        } late: { backup in
            // It was only read.
            try? await backup.image.close()
        }
        records[number]?.manifest = backup.manifest
        records[number]?.info.manifest = backup.manifestPath
        records[number]?.isLayer = backup.isLayer
        records[number]?.earlyWarnings += backup.remarks.map { remark in
            JobIOError(side: .source, operation: .read, range: nil, errno: 0, message: remark, action: .warn)
        }
        return DriveLease(
            id: spec.drive, image: backup.image, live: LiveDrive(backup.device), isBackup: true)
    }

    /// Closes a backup that nobody reads any more.
    func close(_ lease: DriveLease) async {
        do throws(BlockError) { try await lease.image.close() } catch {
            logger.warning("The backup \(lease.live.name) was not closed well: \(error.message)")
        }
    }

    // MARK: What it is copied to

    /// Opens what a backup is restored to, and puts the job together.
    func prepareReading(_ number: JobNumber, _ access: PathAccess) async throws(AgentError) -> BackupJob {
        guard let record = records[number], let hold = record.hold, let manifest = record.manifest else {
            throw cancelledAtStart("")
        }
        let target = try await readingTarget(number, record, hold.lease, manifest, access)
        guard records[number]?.machine.state == .created, !isStopRequested(number) else {
            _ = await target.giveUp(keep: false)
            throw cancelledAtStart(record.spec.jobID)
        }
        records[number]?.target = target
        records[number]?.info.target = target.name
        records[number]?.info.format = target.format
        noteFiles(number, target)
        let isVerify = record.spec.work == .verify
        if manifest.missingBytes > 0 {
            records[number]?.earlyWarnings.append(missing(of: manifest, hold.lease))
            records[number]?.info.missing = BackupJob.Missing(
                length: manifest.missingBytes, ranges: Array(manifest.missing.prefix(Self.missingBound)))
        }
        let journal = try await makeRecord(
            number, clusterSize: BackupJob.clusterSize(target: target.clusterSize))
        var options = BackupJob.Options(
            sync: record.isLayer ? .top : .full, speedBytesPerSecond: record.info.speedBytesPerSecond,
            targetReadsAsZero: target.readsAsZero)
        options.onSourceError = isVerify ? .ignore : record.spec.onSourceError
        options.onTargetError = record.spec.onTargetError
        let job = BackupJob(
            drive: hold.lease.live, target: target, options: options, record: journal, staging: hold.staging,
            sums: hold.sums, buffers: buffers, control: record.control)
        await keep(job, number)
        return job
    }

    private func readingTarget(
        _ number: JobNumber, _ record: Record, _ lease: DriveLease, _ manifest: Manifest, _ access: PathAccess
    ) async throws(AgentError) -> any JobTarget {
        let spec = record.spec
        guard spec.work != .verify else {
            return NoTarget(
                name: lease.image.layers.first?.path ?? spec.target, format: manifest.format,
                manifestPath: record.info.manifest)
        }
        guard spec.drive.isEmpty else { return try await driveTarget(spec, manifest) }
        let target = TargetSpec(
            path: spec.target, mode: .new(overwrite: spec.overwrites),
            format: spec.format ?? manifest.format,
            size: manifest.size, sync: .full, access: access, job: number, jobID: spec.jobID,
            manifestDirectory: files.manifestDirectory, isRestored: true)
        do throws(AgentError) { return try await open(target, number) } catch {
            // What is in the way may be what is read, under whatever name: it is locked by this agent.
            guard error.reason == .targetLocked || error.reason == .targetExists else { throw error }
            let identity = await lease.image.device.engine.blocking { FileIdentity.of(path: spec.target) }
            let layers = lease.image.layers
            guard let index = layers.firstIndex(where: { $0.identity == identity }) else { throw error }
            let what = index == 0 ? "is the backup itself" : "is what the backup lies on"
            throw AgentError(
                .targetIsSource,
                "Couldn't restore \(lease.live.name) to \(spec.target): that \(what) (choose another name)",
                subject: spec.target)
        }
    }

    private func driveTarget(_ spec: BackupSpec, _ manifest: Manifest) async throws(AgentError) -> DriveTarget
    {
        let lease = try await drives.leaseForRestore(spec.drive, jobID: spec.jobID)
        let (size, drives) = (lease.live.size, drives)
        let isSame =
            size == manifest.size
            || lease.image.format == .qcow2 && size > manifest.size && size - manifest.size < 512
        guard isSame else {
            await drives.giveBack(lease)
            throw AgentError(
                .targetSizeMismatch,
                "Couldn't restore to the drive \(spec.drive): it has \(size) bytes, the backup has \(manifest.size)",
                subject: spec.drive)
        }
        return DriveTarget(lease, size: manifest.size) { await drives.giveBack(lease) }
    }

    private func missing(of manifest: Manifest, _ lease: DriveLease) -> JobIOError {
        let isListed = manifest.missing.reduce(0) { $0 + $1.length } >= manifest.missingBytes
        return JobIOError(
            side: .source, operation: .read, range: manifest.missing.first, errno: 0,
            message:
                "The backup \(lease.live.name) lacks \(manifest.missingBytes) bytes, which could not be read or written when "
                + "it was made"
                + (isListed
                    ? " (its manifest says which); they are zeroes here"
                    : "; its manifest has the first of them, which are zeroes here, the others are what stands there"),
            action: .warn)
    }

    // MARK: What was read

    /// How many places are told one by one.
    private static var mostTold: Int { 256 }

    /// Compares what was read with the manifest: nil when it is the same.
    func compareContent(_ number: JobNumber, _ job: BackupJob) async -> JobFailure? {
        guard let record = records[number], let manifest = record.manifest, let content = manifest.content
        else { return nil }
        let damage: ContentDamage
        do throws(BlockError) {
            damage = try await job.damage(comparedWith: content, restIsZero: !record.isLayer)
        } catch {
            return JobFailure(error: AgentError(error, of: .staging, subject: files.stagingDirectory))
        }
        // What was left out as asked for is told, and no damage of what is there.
        let isSalvage =
            record.spec.work != .verify
            && (record.spec.onSourceError == .ignore || record.spec.onTargetError == .ignore)
        guard isSalvage ? !damage.damaged.isEmpty : !damage.isNone else { return nil }
        let name = job.drive.name
        let side: JobIOError.Side = record.spec.work == .verify ? .target : .source
        // What cannot be read was told when that was found.
        let found = damage.damaged.prefix(Self.mostTold).map { range in
            JobIOError(
                side: side, operation: .verify, range: range, errno: 0,
                message: "Damage in \(range) of \(name): the content is not what the manifest says")
        }
        tell(found.flatMap { records[number]?.errors.noteLast($0, now: clock()) ?? [] }, number)
        var words: [String] = []
        if let first = damage.damaged.first {
            words.append(
                "\(damage.damagedBytes) bytes, in extents of \(content.extentSize), hold something that is not what "
                    + "\(record.info.manifest) says, the first at offset \(first.offset)")
        }
        if let first = damage.unreadable.first {
            words.append(
                "\(damage.unreadableBytes) bytes cannot be read, the first at offset \(first.offset)")
        }
        return JobFailure(
            error: AgentError(
                .backupDamaged, "The backup \(name) is damaged: \(words.joined(separator: "; "))",
                subject: name))
    }

    private func tell(_ errors: [JobIOError], _ number: JobNumber) {
        guard let record = records[number] else { return }
        let events = log.append(errors.map { .ioError($0) }, job: number, id: record.spec.jobID)
        if let last = events.last { records[number]?.info.lastSequence = last.sequence }
    }

    // MARK: Drives that are not whole

    private func spoilt(_ number: JobNumber) -> String? {
        guard let spec = records[number]?.spec, case .restore = spec.work, !spec.drive.isEmpty else {
            return nil
        }
        return "the drive \(spec.drive) holds partly restored content: restore to it again before it is used"
    }

    /// A failed restore leaves a drive that is neither what it was nor what it was to be; whoever hears of the failure hears
    /// of that.
    func noting(_ failure: JobFailure, _ number: JobNumber) -> JobFailure {
        guard let words = spoilt(number) else { return failure }
        var failure = failure
        failure.error.message += "; \(words)"
        return failure
    }

    /// So with a cancelled one.
    func tellSpoilt(_ number: JobNumber) {
        guard let words = spoilt(number) else { return }
        let id = records[number]?.spec.jobID ?? ""
        logger.warning("The job \(id) was given up: \(words)")
        tell(
            [
                JobIOError(
                    side: .target, operation: .write, range: nil, errno: 0,
                    message: "The restore was given up: \(words)", action: .warn)
            ], number)
    }
}
