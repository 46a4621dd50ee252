internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Logging

// The jobs of the agent before go on, from what it kept of them: the store says what they are and how far they were, the
// record which clusters and blocks are where. Their drives are open and nobody uses them yet.
//
//   drive leased, record and staging opened, point in time taken up ─► exports open ─► target opened, when it is free

extension JobManager {
    /// Takes the jobs up again. When it returns guests may write: what they overwrite is saved.
    /// `engine` removes the files of those that do not go on.
    func takeUp(
        _ jobs: [StoredJob], _ admissions: [String: DriveAdmission], on engine: any IOEngine
    ) async {
        let jobs = await withoutEnded(jobs, on: engine)
        for job in jobs { enter(job) }
        remember(jobs)
        for job in jobs {
            let number = JobNumber(value: job.number)
            if let problem = await standUp(job, admissions[job.spec.drive]) {
                records[number]?.machine.failAtOnce(problem)
                if records[number]?.hold == nil {
                    let files = files
                    await engine.blocking { files.remove(number, id: job.spec.jobID) }
                }
            }
            await tell(job)
        }
        // One of a group may have failed, now or when the agent before was about to end.
        for job in jobs { groupChanged(JobNumber(value: job.number)) }
        for job in jobs { goOn(job) }
    }

    /// Those that have not ended. The agent before may have been killed between telling an end and forgetting its job.
    private func withoutEnded(_ jobs: [StoredJob], on engine: any IOEngine) async -> [StoredJob] {
        var left: [StoredJob] = []
        for job in jobs {
            let number = JobNumber(value: job.number)
            let past = await history?.read { (store) async throws(AgentError) in try await store.job(number) }
            guard past != nil else {
                left.append(job)
                continue
            }
            lastNumber = max(lastNumber, job.number)
            let files = files
            await engine.blocking { files.remove(number, id: job.spec.jobID) }
            // It is not among the records: that forgets it.
            save(number)
        }
        return left
    }

    /// Makes the job known again: as it was, once more restarted.
    private func enter(_ job: StoredJob) {
        let number = JobNumber(value: job.number)
        lastNumber = max(lastNumber, job.number)
        var info = JobInfo(
            id: job.spec.jobID, type: job.spec.work, drive: job.spec.drive, target: job.target,
            state: .running, progress: .none,
            speedBytesPerSecond: job.speedBytesPerSecond, sync: job.sync, format: job.format,
            createdAt: job.createdAt, waitsForFinalize: job.spec.waitsForFinalize,
            waitsForDismiss: job.spec.waitsForDismiss)
        info.pointInTime = job.pointInTime
        info.group = job.group
        info.isGrouped = job.spec.isGrouped
        info.restarts = job.restarts + 1
        info.manifest = job.manifest ?? ""
        info.isCloned = job.isCloned ?? false
        info.missing = job.missing ?? BackupJob.Missing()
        info.onSourceError = job.spec.onSourceError
        info.onTargetError = job.spec.onTargetError
        var record = Record(
            number: number, spec: job.spec, access: job.access, control: JobControl(), info: info,
            machine: JobStateMachine(
                resuming: job.phase, pauseError: job.pauseError, waitsForFinalize: job.spec.waitsForFinalize,
                drains: job.spec.sync == .none,
                isGrouped: job.spec.isGrouped),
            stop: OneShot())
        // Nothing follows from it yet.
        if info.missing.length > 0 { _ = record.machine.handle(.incomplete) }
        record.errors = JobErrors(count: job.errorCount ?? 0, last: job.errors ?? [])
        record.known = (job.drive, job.resumption)
        record.isDecided = job.phase == .decided
        record.control.setSpeed(job.speedBytesPerSecond)
        if case .paused = job.phase { record.control.pause() }
        if case .finishing = job.phase { record.control.finish() }
        records[number] = record
    }

    /// A retried start finds them.
    private func remember(_ jobs: [StoredJob]) {
        for (_, group) in Dictionary(grouping: jobs, by: \.spec.requestKey) {
            // Of a group some may have ended: the history has the whole request then.
            guard !keys.know(group.map(\.spec)) else { continue }
            let numbers = group.map { JobNumber(value: $0.number) }
            keep(keys.remember(group.map(\.spec), jobs: numbers, now: group[0].createdAt))
        }
    }

    /// Has the job stand on its drive again. Returns why it does not.
    private func standUp(_ job: StoredJob, _ admission: DriveAdmission?) async -> AgentError? {
        let number = JobNumber(value: job.number)
        let isSameBoot =
            switch admission?.finding {
            case .unchanged: true
            case .refused(let why): why.reason != .hostRestarted
            case nil: false
            }
        guard let known = job.resumption else {
            switch job.phase {
            case .cancelling, .failing: return nil
            default: return restarted(number, job)
            }
        }
        let spec = job.targetSpec(
            known, isOtherBoot: !isSameBoot, manifestDirectory: files.manifestDirectory)
        let target = ReopeningTarget(spec, known, opener: targets)
        records[number]?.target = target
        guard !job.phase.isOver else { return nil }
        guard job.goesOn else { return restarted(number, job) }
        let lease: DriveLease
        do throws(AgentError) { lease = try await drives.lease(job.spec.drive, jobID: job.spec.jobID) } catch
        {
            return AgentError(
                error.reason, "Couldn't go on with the backup of \(job.spec.drive): \(error.message)",
                subject: error.subject)
        }
        do throws(AgentError) {
            guard case .unchanged(let journal) = admission?.finding else {
                if case .refused(let why) = admission?.finding { throw why }
                throw AgentError(hostRestartedDuring: job)
            }
            try await standUp(job, lease, journal, target)
            return nil
        } catch {
            if records[number]?.hold == nil { await drives.giveBack(lease) }
            return error
        }
    }

    private func standUp(
        _ job: StoredJob, _ lease: DriveLease, _ journal: JobRecord, _ target: ReopeningTarget
    ) async throws(AgentError) {
        let number = JobNumber(value: job.number)
        let device = lease.live.device
        guard device.size == journal.driveSize else {
            throw AgentError(
                .sourceChanged,
                "Couldn't go on with the backup of \(job.spec.drive): it has \(device.size) bytes now, and had "
                    + "\(journal.driveSize)", subject: job.spec.drive)
        }
        let staging: Staging
        do throws(BlockError) {
            staging = try await files.openStaging(
                number, id: job.spec.jobID, driveSize: device.size, on: device.engine)
        } catch {
            throw AgentError(lostPointInTimeBy: error, drive: job.spec.drive)
        }
        let hold: DriveHold
        do throws(BlockError) {
            let sums = try await files.openSums(
                number, id: job.spec.jobID, driveSize: device.size, algorithm: job.spec.checksum,
                on: device.engine)
            hold = DriveHold(lease: lease, staging: staging, sums: sums, record: journal)
        } catch {
            // The error that led here is the one to tell.
            try? await staging.close()
            throw AgentError(lostPointInTimeBy: error, drive: job.spec.drive)
        }
        records[number]?.hold = hold
        // Everything is copied; what the flush would have told is to be found out from the target.
        if journal.isFlushing { return }
        if job.spec.sync == .none, journal.isCancelled, job.phase != .finishing, job.phase != .finalizing {
            // Its good end was recorded, and not kept yet.
            records[number]?.machine = JobStateMachine(
                resuming: .finishing, waitsForFinalize: false, drains: true, isGrouped: false)
            records[number]?.control.finish()
        }
        let taken = await assemble(number, target, hold, journal)
        do throws(BackupFailure) { try await taken.resume() } catch {
            throw AgentError(
                .snapshotBroken, error.ioFailure?.error.message ?? "\(error)", subject: job.spec.drive)
        }
        records[number]?.hold?.isFixed = true
        // The record knows it better than what was kept.
        let missing = await taken.missing(limit: Self.missingBound)
        records[number]?.info.missing = missing
        if missing.length > 0 { report(.incomplete, number) }
    }

    /// Why a job does not go on that only reads a backup, or of which the target cannot be known again.
    private func restarted(_ number: JobNumber, _ job: StoredJob) -> AgentError {
        let work =
            switch job.spec.work {
            case .backup: "The backup of \(job.spec.drive) to \(job.target)"
            case .verify: "The verification of \(job.target)"
            case .restore(let from): "The restore of \(from)"
            }
        let error = AgentError(
            .agentRestarted, "\(work) does not go on: the agent ended while it ran (start it again)",
            subject: job.spec.jobID)
        return noting(JobFailure(error: error), number).error
    }

    /// Tells whoever watches what has become of the job: nothing, where it is what they were told last.
    private func tell(_ job: StoredJob) async {
        let number = JobNumber(value: job.number)
        let last = await lastChange(of: number)
        guard let record = records[number] else { return }
        let id = job.spec.jobID
        let kind = JobEvent.Kind.started(
            JobEvent.Started(
                drive: job.spec.drive, target: job.target, pointInTime: job.pointInTime, sync: job.sync,
                format: job.format.rawValue))
        let started =
            job.started.map {
                JobEvent(sequence: $0.sequence, time: $0.time, job: number, jobID: id, kind: kind)
            }
            // The agent before was killed before it could keep that it had told.
            ?? log.append([kind], job: number, id: id)[0]
        let (state, reason) = (record.machine.state, record.machine.pauseReason)
        var lastSequence = max(started.sequence, last?.sequence ?? 0)
        if last?.state != state || last?.pauseReason != reason {
            let change = JobEvent.Kind.stateChanged(
                state, previous: last?.state, pauseReason: reason,
                pauseError: reason == .error ? record.machine.pauseError : nil)
            // Told with the change, and lost with it.
            let isAsking = record.machine.phase == .pending && record.machine.waitsForFinalize
            let kinds = [change] + (isAsking ? [JobEvent.Kind.pending] : [])
            lastSequence = log.append(kinds, job: number, id: id).last?.sequence ?? lastSequence
        }
        records[number]?.started = started
        records[number]?.info.lastSequence = lastSequence
        record.start.fulfil(.success(started))
        save(number)
        logger.notice(
            "The job \(id) of \(job.spec.drive) to \(job.target) is taken up after a restart: \(state.word)")
    }

    // MARK: Going on

    private func goOn(_ job: StoredJob) {
        let number = JobNumber(value: job.number)
        guard let target = records[number]?.target as? ReopeningTarget else {
            // Nothing of a target is there that could be given up.
            own(number, Task { await self.giveUp(number) })
            return
        }
        // By the agent before: nobody has been able to ask this one for the job's end.
        let wasFlushing = records[number]?.hold?.record?.isFlushing == true
        // Not the job's: it may outlive it, as long as the agent before holds the file.
        Task { await target.open() }
        own(number, Task { await self.goOn(number, job.phase, target, wasFlushing: wasFlushing) })
    }

    private func goOn(
        _ number: JobNumber, _ phase: StoredJob.Phase, _ target: ReopeningTarget, wasFlushing: Bool
    ) async {
        guard let found = await target.found(unless: records[number]?.stop) else {
            // Cancelled while the target was busy, or the agent stops.
            if !isStopping { report(.copyStopped, number) }
            return
        }
        let machine = records[number]?.machine
        switch (phase, found) {
        case (.finalizing, .success(.published)), (.decided, .success(.published)):
            // The last that the agent before did was to give the target its name.
            await end(number)
        case (.decided, .success): await publish(number)
        case (.cancelling, _): await giveUp(number)
        // Why it does not go on was found out before.
        case _ where machine?.failure != nil: await giveUp(number)
        // The process that was to say more may have been told to stop, too: the next agent asks again.
        case (_, .failure) where isStopping: return
        case (_, .failure(let error)):
            // Of a group that was decided the others complete.
            records[number]?.isDecided = false
            report(.copyFailed(JobFailure(error: error)), number)
        case _ where wasFlushing:
            report(.copyFailed(JobFailure(error: interrupted(number))), number)
        default: await goOnCopying(number)
        }
    }

    private func goOnCopying(_ number: JobNumber) async {
        guard let job = records[number]?.hold?.job, let phase = records[number]?.machine.phase else { return }
        switch phase {
        case .running, .paused, .finishing: await copy(number, job)
        case .waiting: groupChanged(number)
        case .finalizing: setOffCompletion(number)
        case .pending, .decided, .cancelling, .failing: break
        }
    }

    private func interrupted(_ number: JobNumber) -> AgentError {
        let (drive, target) = (records[number]?.spec.drive ?? "", records[number]?.info.target ?? "")
        return AgentError(
            .flushInterrupted,
            "The agent was killed while the backup of \(drive) was being flushed to \(target): whether all of it is "
                + "there is not known (start it again)", subject: target)
    }
}

extension ReopeningTarget {
    /// What `open` has found; nil when `stop` is raised first.
    func found(unless stop: OneShot<Void>?) async -> Result<ReopenedTarget, AgentError>? {
        await withTaskGroup(of: Result<ReopenedTarget, AgentError>?.self) { group in
            group.addTask { await self.found() }
            group.addTask {
                _ = await stop?.wait()
                return nil
            }
            let first = await group.next() ?? nil
            group.cancelAll()
            return first
        }
    }
}
