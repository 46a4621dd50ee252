internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Logging

// The tasks of a job, off the manager's own thread wherever they wait.

extension JobManager {
    /// A job from its acceptance to the end of its copy.
    func run(_ number: JobNumber, _ spec: BackupSpec, _ access: PathAccess) async {
        let job: BackupJob
        do throws(AgentError) {
            job = try await prepare(number, spec, access)
        } catch {
            await giveBackDrive(number)
            refuse(number, error)
            return
        }
        guard announce(number) else {
            // A cancel came at the last moment.
            _ = await records[number]?.target?.giveUp(keep: false)
            await giveBackDrive(number)
            refuse(number, cancelledAtStart(spec))
            return
        }
        let ticker = Task { await self.tick(number) }
        let failure: BackupFailure?
        do throws(BackupFailure) {
            try await job.run()
            failure = nil
        } catch {
            failure = error
        }
        ticker.cancel()
        await ticker.value
        switch failure {
        case nil:
            appendProgress(number)
            report(.copied, number)
        case .cancelled: report(.copyStopped, number)
        case .failed(let failure): report(.copyFailed(jobFailure(failure, number)), number)
        }
    }

    /// Takes the drive, opens the target, checks one against the other. When it throws nothing is left of
    /// either.
    private func prepare(
        _ number: JobNumber, _ spec: BackupSpec, _ access: PathAccess
    ) async throws(AgentError) -> BackupJob {
        let lease = try await drives.lease(spec.drive, jobID: spec.jobID)
        records[number]?.lease = lease
        let image = lease.image
        guard image.device.size <= BackupJob.largestDrive else {
            throw AgentError(
                .imageUnsupported,
                "Couldn't back up \(spec.drive): its \(image.device.size) bytes are more than the "
                    + "\(BackupJob.largestDrive) bytes that a job can keep track of", subject: spec.drive)
        }
        let backing = image.layers.dropFirst().first
        let sync: BackupSync = backing == nil ? .full : spec.sync
        var targetSpec = TargetSpec(
            path: spec.target, mode: .new(overwrite: spec.overwrites), format: spec.format ?? image.format,
            size: image.device.size, access: access, job: number, jobID: spec.jobID)
        switch spec.mode {
        case .absolutePaths:
            if sync == .top, let backing {
                targetSpec.backing = TargetSpec.Backing(path: backing.path, format: backing.format)
            }
        case .existing:
            targetSpec.mode = .existing
            targetSpec.format = spec.format
        }
        let target = try await open(targetSpec, number)
        do throws(AgentError) {
            if target.isProbedRaw { try await checkFirstSector(of: image.device, target: target.name) }
            guard var record = records[number], record.machine.state == .created else {
                throw cancelledAtStart(spec)
            }
            record.target = target
            record.info.target = target.name
            record.info.format = target.format
            record.info.sync = sync
            records[number] = record
            let options = BackupJob.Options(
                sync: sync == .full ? .full : .top, speedBytesPerSecond: record.info.speedBytesPerSecond,
                targetReadsAsZero: target.readsAsZero)
            return BackupJob(
                drive: LiveDrive(image.device), target: target, options: options, record: JobRecord(),
                staging: Staging(), buffers: buffers,
                control: record.control)
        } catch {
            _ = await target.giveUp(keep: false)
            throw error
        }
    }

    /// Opens the target, unless the job is to stop first: then the target is given up when it is open at
    /// last.
    private func open(_ spec: TargetSpec, _ number: JobNumber) async throws(AgentError) -> any JobTarget {
        guard let stop = records[number]?.stop else { throw cancelledAtStart(spec.jobID) }
        let opened = OneShot<Result<any JobTarget, AgentError>>()
        let targets = targets
        own(
            number,
            Task {
                do throws(AgentError) { opened.fulfil(.success(try await targets.open(spec))) } catch {
                    opened.fulfil(.failure(error))
                }
            })
        let result = await withTaskGroup(of: Result<any JobTarget, AgentError>?.self) { group in
            group.addTask { await opened.wait() }
            group.addTask {
                _ = await stop.wait()
                return nil
            }
            let first = await group.next() ?? nil
            group.cancelAll()
            return first
        }
        if let result { return try result.get() }
        own(
            number,
            Task {
                if case .success(let target) = await opened.wait() { _ = await target.giveUp(keep: false) }
            })
        throw cancelledAtStart(spec.jobID)
    }

    private func cancelledAtStart(_ spec: BackupSpec) -> AgentError { cancelledAtStart(spec.jobID) }

    private func cancelledAtStart(_ id: String) -> AgentError {
        AgentError(.jobCancelled, "The job \(id) was cancelled before it had started", subject: id)
    }

    /// An image that was taken for raw must not look like another format afterwards.
    private func checkFirstSector(of source: any BlockDevice, target: String) async throws(AgentError) {
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

    /// The point in time is fixed: tells everybody, and the copy begins. False when the job was cancelled
    /// before.
    private func announce(_ number: JobNumber) -> Bool {
        guard var record = records[number], record.machine.state == .created else { return false }
        // Nothing is awaited between here and the copy's first read, and no guest writes to the drive.
        let pointInTime = clock()
        record.info.pointInTime = pointInTime
        let started = JobEvent.Started(
            drive: record.spec.drive, target: record.info.target, pointInTime: pointInTime,
            sync: record.info.sync, format: record.info.format?.rawValue ?? "")
        let events = log.append(
            [.stateChanged(.created, previous: nil, pauseReason: nil), .started(started)], job: number,
            id: record.spec.jobID)
        guard let event = events.last else { return false }
        record.started = event
        record.info.lastSequence = event.sequence
        records[number] = record
        record.control.setSpeed(record.info.speedBytesPerSecond)
        report(.started, number)
        record.start.fulfil(.success(event))
        logger.info("The job \(record.spec.jobID) copies \(record.spec.drive) to \(record.info.target)")
        return true
    }

    // MARK: Progress

    /// Looks ten times a second at how far the job is, until the task is cancelled.
    private func tick(_ number: JobNumber) async {
        while !Task.isCancelled {
            // Ends early when the job does.
            try? await Task.sleep(for: .milliseconds(100))
            guard !Task.isCancelled, let record = records[number] else { return }
            let isDue = clock() - record.lastProgressTime >= 1_000_000_000 || log.isWatched(number)
            if isDue { appendProgress(number) }
        }
    }

    /// Logs how far the job is, if that has changed.
    private func appendProgress(_ number: JobNumber) {
        guard let record = records[number] else { return }
        let progress = progress(of: record)
        guard progress != record.lastProgress else { return }
        let events = log.append([.progress(progress)], job: number, id: record.spec.jobID)
        records[number]?.lastProgress = progress
        records[number]?.lastProgressTime = events.last?.time ?? 0
        if let last = events.last { records[number]?.info.lastSequence = last.sequence }
    }

    // MARK: Pausing

    /// Reports when nothing is in flight any more after a pause.
    func watchPause(_ number: JobNumber) {
        guard let control = records[number]?.control else { return }
        own(
            number,
            Task {
                if await control.quiescent() { self.report(.quiescent, number) }
            })
    }

    // MARK: The end of the target

    /// Completes the target. The drive is given back before anybody hears of it.
    func complete(_ number: JobNumber) async {
        guard let target = records[number]?.target else { return }
        do throws(BlockError) {
            try await target.complete()
        } catch {
            report(.targetFailed(finishFailure(error, target)), number)
            return
        }
        await giveBackDrive(number)
        report(.targetCompleted, number)
    }

    /// Gives the target up, unless it is complete by now.
    func giveUp(_ number: JobNumber) async {
        let isComplete = await records[number]?.target?.giveUp(keep: false) ?? false
        await giveBackDrive(number)
        report(isComplete ? .targetCompleted : .targetAbandoned, number)
    }

    private func giveBackDrive(_ number: JobNumber) async {
        guard let lease = records[number]?.lease else { return }
        records[number]?.lease = nil
        await drives.giveBack(lease)
    }

    // MARK: Failures

    private func jobFailure(_ failure: IOFailure, _ number: JobNumber) -> JobFailure {
        let record = records[number]
        switch failure.side {
        case .source:
            return JobFailure(
                error: AgentError(failure.error, of: .source, subject: record?.spec.drive ?? ""),
                ioError: JobIOError(
                    side: .source, operation: .read, range: failure.range, errno: failure.error.errno,
                    message: failure.error.message))
        case .target, .staging:
            return JobFailure(
                error: AgentError(failure.error, of: .destination, subject: record?.info.target ?? ""),
                ioError: JobIOError(
                    side: .target, operation: record?.target?.failedOperation ?? .write, range: failure.range,
                    errno: failure.error.errno, message: failure.error.message))
        }
    }

    private func finishFailure(_ error: BlockError, _ target: any JobTarget) -> JobFailure {
        JobFailure(
            error: AgentError(error, of: .destination, subject: target.name),
            ioError: JobIOError(
                side: .target, operation: target.failedOperation ?? .finish, range: error.range,
                errno: error.errno, message: error.message))
    }
}
