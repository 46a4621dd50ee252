internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Logging

// The start of a job, or of a group at one instant:
//
//   drives leased, staging made ─► targets checked ─► targets opened, new ones made ─► point in time fixed ─► started
//
// Each step is done for all jobs before the next one begins, the cheapest to undo first. Whatever fails or is cancelled on
// the way undoes all of them, guests first: no file is left, and no job.

extension JobManager {
    /// Jobs that start at one instant, from their acceptance to the ends of their copies.
    func run(_ numbers: [JobNumber], _ access: PathAccess) async {
        do throws(AgentError) {
            for number in numbers { try await takeDrive(number, access) }
            if numbers.count > 1 { for number in numbers { try await checkTarget(number, access) } }
            var jobs: [(number: JobNumber, job: BackupJob)] = []
            for number in numbers { jobs.append((number, try await prepare(number, access))) }
            try await fixPointInTime(of: jobs)
            await withTaskGroup(of: Void.self) { group in
                for (number, job) in jobs { group.addTask { await self.copy(number, job) } }
            }
        } catch {
            await undo(numbers)
            for number in numbers { refuse(number, error) }
        }
    }

    /// Gives everything back that the jobs have so far: the guests go first, whatever else hangs.
    private func undo(_ numbers: [JobNumber]) async {
        // First of all: no agent after this one is to take up what was refused.
        let isKept = numbers.contains { records[$0]?.known != nil }
        do throws(AgentError) { if isKept { try await store?.keep([], forgetting: numbers) } } catch {
            logger.error("\(error.message)")
        }
        await each(numbers) { await self.letGo($0) }
        await each(numbers) { _ = await self.records[$0]?.target?.giveUp(keep: false) }
        await each(numbers) { await self.filesRemoved($0) }
    }

    private func each(_ numbers: [JobNumber], _ body: @escaping @Sendable (JobNumber) async -> Void) async {
        await withTaskGroup(of: Void.self) { group in
            for number in numbers { group.addTask { await body(number) } }
        }
    }

    // MARK: The drive and what is beside it

    private func takeDrive(_ number: JobNumber, _ access: PathAccess) async throws(AgentError) {
        guard let spec = records[number]?.spec else { return }
        let lease =
            spec.work == .backup
            ? try await drives.lease(spec.drive, jobID: spec.jobID) : try await openBackup(number, access)
        let device = lease.live.device
        do throws(AgentError) {
            guard device.size <= BackupJob.largestDrive else {
                throw AgentError(
                    .imageUnsupported,
                    "Couldn't back up \(spec.drive): its \(device.size) bytes are more than the "
                        + "\(BackupJob.largestDrive) bytes that a job can keep track of", subject: spec.drive)
            }
            let (staging, sums) = try await makeFiles(number, spec, for: device)
            records[number]?.hold = DriveHold(lease: lease, staging: staging, sums: sums)
        } catch {
            if lease.isBackup { await close(lease) } else { await drives.giveBack(lease) }
            throw error
        }
    }

    private func makeFiles(
        _ number: JobNumber, _ spec: BackupSpec, for device: any BlockDevice
    ) async throws(AgentError) -> (Staging, BlockSums) {
        // What is read back is read as its manifest says.
        let algorithm = records[number]?.manifest?.content?.algorithm ?? spec.checksum
        do throws(BlockError) {
            let staging = try await files.makeStaging(
                number, id: spec.jobID, driveSize: device.size, on: device.engine)
            do throws(BlockError) {
                let sums = try await files.makeSums(
                    number, id: spec.jobID, driveSize: device.size, algorithm: algorithm, on: device.engine)
                return (staging, sums)
            } catch {
                // The error that led here is the one to tell.
                try? await staging.remove()
                throw error
            }
        } catch {
            throw AgentError(error, of: .staging, subject: files.stagingDirectory)
        }
    }

    @discardableResult
    func makeRecord(_ number: JobNumber, clusterSize: UInt64) async throws(AgentError) -> JobRecord {
        guard let record = records[number], let lease = record.hold?.lease else {
            throw cancelledAtStart("")
        }
        let (files, id, device) = (files, record.spec.jobID, lease.live.device)
        let made: Result<JobRecord, BlockError> = await device.engine.blocking {
            Result { () throws(BlockError) in
                try files.makeRecord(
                    number, id: id, driveSize: device.size, clusterSize: clusterSize, engine: device.engine)
            }
        }
        do throws(BlockError) {
            let journal = try made.get()
            records[number]?.hold?.record = journal
            return journal
        } catch {
            throw AgentError(error, of: .staging, subject: files.recordDirectory)
        }
    }

    // MARK: The target

    /// Opens the target, checks it against the drive, and puts the job together.
    private func prepare(_ number: JobNumber, _ access: PathAccess) async throws(AgentError) -> BackupJob {
        guard let spec = records[number]?.spec, let hold = records[number]?.hold else {
            throw cancelledAtStart("")
        }
        guard spec.work == .backup else { return try await prepareReading(number, access) }
        let (targetSpec, sync) = targetSpec(number, spec, hold.lease.image, access)
        // What a new target's clusters are is known, so that it is made last of all.
        if case .new = targetSpec.mode {
            try await makeRecord(
                number, clusterSize: BackupJob.clusterSize(target: TargetPlace.newClusterSize))
        }
        let target = try await open(targetSpec, number)
        guard var record = records[number], record.machine.state == .created, !isStopRequested(number) else {
            _ = await target.giveUp(keep: false)
            throw cancelledAtStart(spec.jobID)
        }
        record.target = target
        record.info.target = target.name
        record.info.format = target.format
        record.info.sync = sync
        record.info.manifest = target.manifestPath
        records[number] = record
        noteFiles(number, target)
        let journal =
            if let made = record.hold?.record {
                made
            } else {
                try await makeRecord(number, clusterSize: BackupJob.clusterSize(target: target.clusterSize))
            }
        return await assemble(number, target, hold, journal)
    }

    /// Notes by what the next agent knows the job's files again.
    func noteFiles(_ number: JobNumber, _ target: any JobTarget) {
        guard let lease = records[number]?.hold?.lease, let layer = lease.image.layers.first else { return }
        let file = StoredJob.DriveFile(
            path: layer.path, device: layer.identity.device, inode: layer.identity.inode,
            size: lease.live.size)
        records[number]?.known = (file, target.resumption)
    }

    /// Puts a job together from its parts.
    func assemble(
        _ number: JobNumber, _ target: any JobTarget, _ hold: DriveHold, _ journal: JobRecord
    ) async -> BackupJob {
        let (spec, info) = (records[number]?.spec, records[number]?.info)
        var options = BackupJob.Options(
            sync: BackupJob.Options.Sync(info?.sync ?? .full),
            speedBytesPerSecond: info?.speedBytesPerSecond ?? 0, targetReadsAsZero: target.readsAsZero)
        options.beforeFirstWrite = partialManifest(number, target)
        if let spec {
            options.saveFailure = spec.saveFailure
            options.saveTimeout = spec.saveTimeout
            options.stagingFull = spec.stagingFull
            options.onSourceError = spec.onSourceError
            options.onTargetError = spec.onTargetError
        }
        let job = BackupJob(
            drive: hold.lease.live, base: hold.lease.base, target: target, options: options, record: journal,
            staging: hold.staging, sums: hold.sums, buffers: buffers,
            control: records[number]?.control ?? JobControl())
        await hold.lease.image.noteChanges(in: journal.changeTimes)
        await keep(job, number)
        return job
    }

    func keep(_ job: BackupJob, _ number: JobNumber) async {
        await listen(to: job, number)
        records[number]?.hold?.job = job
    }

    private func targetSpec(
        _ number: JobNumber, _ spec: BackupSpec, _ image: OpenImage, _ access: PathAccess
    ) -> (TargetSpec, BackupSync) {
        let backing = image.layers.dropFirst().first
        // Without a backing file the top image holds everything.
        let sync: BackupSync = spec.sync == .top && backing == nil ? .full : spec.sync
        var target = TargetSpec(
            path: spec.target, mode: .new(overwrite: spec.overwrites), format: spec.format ?? image.format,
            size: image.device.size, sync: sync, access: access, job: number, jobID: spec.jobID,
            manifestDirectory: files.manifestDirectory)
        if spec.mode == .existing {
            target.mode = .existing
            target.format = spec.format
        }
        switch sync {
        case .full:
            // A file of the drive's bytes, and nothing but these.
            if spec.clones == true, spec.mode == .absolutePaths, image.format == .raw, target.format == .raw,
                image.layers.count == 1, let file = image.layers.first
            {
                target.cloneSource = CloneSource(path: file.path, identity: file.identity)
            }
        case .top: if spec.mode == .absolutePaths { target.backing = backing.map(TargetSpec.Backing.init) }
        case .none: target.backing = image.layers.first.map(TargetSpec.Backing.init)
        }
        return (target, sync)
    }

    /// Checks the target of a job of a group, before the first one is made.
    private func checkTarget(_ number: JobNumber, _ access: PathAccess) async throws(AgentError) {
        guard let spec = records[number]?.spec, let hold = records[number]?.hold else { return }
        let (targetSpec, _) = targetSpec(number, spec, hold.lease.image, access)
        let targets = targets
        try await unlessStopped(number) { () async throws(AgentError) in try await targets.check(targetSpec) }
    }

    func open(_ spec: TargetSpec, _ number: JobNumber) async throws(AgentError) -> any JobTarget {
        let targets = targets
        return try await unlessStopped(number) { () async throws(AgentError) in
            try await targets.open(spec)
        } late: { target in
            _ = await target.giveUp(keep: false)
        }
    }

    /// Does what a target may hang in, unless a job that starts with this one is to stop first: then `late` gets what comes
    /// of it at last.
    func unlessStopped<Value: Sendable>(
        _ number: JobNumber, _ body: @escaping @Sendable () async throws(AgentError) -> Value,
        late: @escaping @Sendable (Value) async -> Void = { _ in }
    ) async throws(AgentError) -> Value {
        guard let record = records[number] else { throw cancelledAtStart("") }
        let stop = record.stop
        let done = OneShot<Result<Value, AgentError>>()
        let task = Task {
            do throws(AgentError) { done.fulfil(.success(try await body())) } catch {
                done.fulfil(.failure(error))
            }
        }
        own(number, task)
        let result = await withTaskGroup(of: Result<Value, AgentError>?.self) { group in
            group.addTask { await done.wait() }
            group.addTask {
                _ = await stop.wait()
                return nil
            }
            let first = await group.next() ?? nil
            group.cancelAll()
            return first
        }
        if let result { return try result.get() }
        // Who can leave what hangs does so now.
        task.cancel()
        own(
            number,
            Task {
                if case .success(let value) = await done.wait() { await late(value) }
            })
        throw cancelledAtStart(record.spec.jobID)
    }

    func isStopRequested(_ number: JobNumber) -> Bool { records[number]?.stop.value != nil }

    func cancelledAtStart(_ id: String) -> AgentError {
        AgentError(.jobCancelled, "The job \(id) was cancelled before it had started", subject: id)
    }

    // MARK: The point in time

    /// Fixes it for all jobs, checks what can only be seen then, and tells everybody that they have started. When it
    /// throws, none has.
    private func fixPointInTime(of jobs: [(number: JobNumber, job: BackupJob)]) async throws(AgentError) {
        guard let first = jobs.first.flatMap({ records[$0.number] }) else { return }
        guard first.stop.value == nil else { throw cancelledAtStart(first.spec.jobID) }
        // The instant is after this one, and 200 ms later at most unless another group is before this one: whatever a guest
        // did before it is in the backup.
        let pointInTime = clock()
        if let error = await fix(jobs, unless: first.stop) {
            guard let failure = error.ioFailure else { throw cancelledAtStart(first.spec.jobID) }
            throw AgentError(.snapshotFailed, failure.error.message, subject: first.spec.drive)
        }
        for (number, _) in jobs { records[number]?.hold?.isFixed = true }
        for (number, job) in jobs {
            guard let target = records[number]?.target, target.isProbedRaw else { continue }
            // Only now: until the point in time the guest may have written anything there. Nothing was written to the
            // target yet, and a refusal leaves it as it was.
            try await unlessStopped(number) { () async throws(AgentError) in
                try await Self.checkFirstSector(of: job.view, target: target.name)
            }
        }
        for (number, _) in jobs { records[number]?.info.pointInTime = pointInTime }
        // Whoever hears that a job has started may count on its going on after a restart.
        do throws(AgentError) {
            try await store?.keep(jobs.compactMap { records[$0.number].flatMap(stored) })
        } catch {
            let ids = jobs.compactMap { records[$0.number]?.spec.jobID }.joined(separator: ", ")
            logger.error("\(error.message); after a restart of the agent \(ids) will not go on")
        }
        guard first.stop.value == nil, jobs.allSatisfy({ records[$0.number]?.machine.state == .created })
        else {
            throw cancelledAtStart(first.spec.jobID)
        }
        for (number, _) in jobs { announce(number, pointInTime: pointInTime) }
        for (number, _) in jobs { begin(number) }
    }

    /// Fixes the point in time of all jobs, or returns why not. One that is to stop stops all, whatever the requests are
    /// that the others wait for.
    private func fix(
        _ jobs: [(number: JobNumber, job: BackupJob)], unless stop: OneShot<Void>
    ) async -> BackupFailure? {
        let jobs = jobs.map(\.job)
        let watcher = Task {
            guard await stop.wait() != nil else { return }
            for job in jobs { job.control.cancel() }
        }
        var failure: BackupFailure?
        do throws(BackupFailure) { try await BackupJob.fixPointInTime(of: jobs) } catch { failure = error }
        // Later a job that is cancelled is cancelled alone.
        watcher.cancel()
        await watcher.value
        return failure
    }

    /// An image that was taken for raw must not look like another format afterwards.
    private static func checkFirstSector(of source: any BlockDevice, target: String) async throws(AgentError)
    {
        let count = Int(min(source.size, UInt64(ImageProbe.length)))
        let buffer = IOBuffer(count: count)
        do throws(BlockError) {
            try await source.engine.run { () async throws(BlockError) in
                try await source.read(ByteRange(offset: 0, length: UInt64(count)), into: buffer.slice)
            }
        } catch {
            throw AgentError(error, of: .source, subject: source.name)
        }
        let bytes = UnsafeRawBufferPointer(buffer.bytes)
        guard let format = ImageProbe.looksLikeOtherFormat(bytes) else { return }
        throw AgentError(
            .targetFormatAmbiguous,
            "Couldn't use \(target) as target: its format was not given, it was taken for raw, and with this "
                + "drive's first sector it would look like \(format) afterwards (--format raw decides it)",
            subject: target)
    }

    /// Tells everybody that a job has started. Those of a group are told of one after another, before anything else of any.
    private func announce(_ number: JobNumber, pointInTime: Int64) {
        guard var record = records[number] else { return }
        record.info.pointInTime = pointInTime
        let started = JobEvent.Started(
            drive: record.spec.drive, target: record.info.target, pointInTime: pointInTime,
            sync: record.info.sync, format: record.info.format?.rawValue ?? "")
        let events = log.append(
            [.stateChanged(.created, previous: nil, pauseReason: nil), .started(started)], job: number,
            id: record.spec.jobID)
        guard let event = events.last else { return }
        record.started = event
        record.info.lastSequence = event.sequence
        records[number] = record
    }

    /// The job runs from here on, and whoever started it has an answer.
    private func begin(_ number: JobNumber) {
        guard let record = records[number], let event = record.started else { return }
        record.control.setSpeed(record.info.speedBytesPerSecond)
        report(.started, number)
        let warnings = record.earlyWarnings
        records[number]?.earlyWarnings = []
        if let last = log.append(warnings.map { .ioError($0) }, job: number, id: record.spec.jobID).last {
            records[number]?.info.lastSequence = last.sequence
        }
        record.start.fulfil(.success(event))
        let verb = record.spec.work == .verify ? "verifies" : "copies to"
        logger.info("The job \(record.spec.jobID) \(verb) \(record.info.target)")
    }

    // MARK: Points in time that are exported

    /// The point in time of a running job, which somebody wants to read.
    package func view(of id: String) throws(AgentError) -> JobView {
        let number = try number(of: id)
        guard let view = records[number]?.hold?.view(number, id), records[number]?.started != nil else {
            throw AgentError(
                .jobState, "The job \(id) has no point in time that could be read: it is not running",
                subject: id)
        }
        return view
    }

    /// Whether the job has not let go of its drive.
    package func hasView(_ number: JobNumber) -> Bool { records[number]?.hold != nil }
}

extension BackupJob.Options.Sync {
    init(_ sync: BackupSync) {
        self =
            switch sync {
            case .full: .full
            case .top: .top
            case .none: .none
            }
    }
}

extension TargetSpec.Backing {
    init(_ layer: ImageLayer) {
        self.init(path: layer.path, format: layer.format, identities: [layer.identity] + layer.aliases)
    }
}
