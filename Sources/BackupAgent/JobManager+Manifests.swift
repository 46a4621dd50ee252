internal import BackupJobs
internal import BlockIO
internal import DiskImages

// Manifests of backups: partial before the first write where a target exists already, and whole before the target is.

extension JobManager {
    /// What is done before the first write to a target: one that exists is marked as partly written. A new one is called
    /// `.partial` itself.
    func partialManifest(
        _ number: JobNumber, _ target: any JobTarget
    ) -> (@Sendable () async throws(BlockError) -> Void)? {
        guard records[number]?.spec.mode == .existing else { return nil }
        return { () async throws(BlockError) in
            guard let content = await self.makeManifest(number, target)?.encoded else { return }
            try await target.putManifest(content, isFinal: false)
        }
    }

    /// What is known of the backup before its content is.
    private func makeManifest(_ number: JobNumber, _ target: any JobTarget) async -> Manifest? {
        guard let record = records[number] else { return nil }
        if let manifest = record.manifest { return manifest }
        var manifest = Manifest(
            id: Manifest.makeID(), job: record.spec.jobID, drive: record.spec.drive, target: target.name,
            format: target.format, sync: record.info.sync, size: record.hold?.lease.live.size ?? 0,
            pointInTime: record.info.pointInTime)
        manifest.parent = await parent(of: record)
        // The first one counts: the id is that of the backup.
        if records[number]?.manifest == nil { records[number]?.manifest = manifest }
        return records[number]?.manifest
    }

    /// What the backup lies on; a new target of sync `full` stands alone.
    private func parent(of record: Record) async -> Manifest.Parent? {
        guard let lease = record.hold?.lease else { return nil }
        let found: ImageLayer?
        let mode = record.info.sync
        switch mode {
        case .full: found = nil
        case .top: found = lease.image.layers.dropFirst().first
        case .none: found = lease.image.layers.first
        }
        guard let layer = found else { return nil }
        var parent = Manifest.Parent(path: layer.path, format: layer.format)
        // One that has none, or none that can be read, has no id.
        let manifest = try? await ManifestPlace(path: layer.path).read(on: lease.live.engine)
        parent.id = manifest?.state == .complete ? manifest?.id : nil
        return parent
    }

    /// What is left to do about a job's content when all of it was copied: a backup's manifest is written, what was read
    /// back is compared with its own.
    func finishContent(_ number: JobNumber, _ job: BackupJob, _ target: any JobTarget) async -> JobFailure? {
        guard records[number]?.spec.work == .backup else { return await compareContent(number, job) }
        guard var manifest = await makeManifest(number, target) else { return nil }
        do throws(BlockError) {
            manifest.isCloned = job.isCloned
            manifest.content = try await job.contentDigests()
        } catch {
            let failure = AgentError(error, of: .staging, subject: files.stagingDirectory)
            let range = error.range
            return JobFailure(
                error: failure,
                // Nothing went wrong with one that was given up.
                ioError: error.code == .cancelled
                    ? nil
                    : JobIOError(
                        side: .staging, operation: .read, range: range, errno: error.errno,
                        message: error.message))
        }
        let missing = await job.missing(limit: Manifest.mostMissing)
        (manifest.missing, manifest.missingBytes) = (missing.ranges, missing.length)
        manifest.state = .complete
        do throws(BlockError) {
            let content = try await Self.text(of: manifest, on: job.drive.engine)
            try await target.putManifest(content, isFinal: true)
            return nil
        } catch {
            return finishFailure(error, target)
        }
    }

    /// A manifest as it is written: one of a large drive takes long to make, and nobody else waits for that.
    private nonisolated static func text(
        of manifest: Manifest, on engine: any IOEngine
    ) async throws(BlockError) -> [UInt8] {
        let text: Result<[UInt8], BlockError> = await engine.blocking {
            Result { () throws(BlockError) in try manifest.encodedWithinBounds() }
        }
        return try text.get()
    }
}
