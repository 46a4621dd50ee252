internal import BackupJobs
internal import BlockIO
internal import Logging

// The tasks of a job, off the manager's own thread wherever they wait.

extension JobManager {
    /// A job from its point in time to the end of its copy.
    func copy(_ number: JobNumber, _ job: BackupJob) async {
        let ticker = Task { await self.tick(number, job) }
        let failure: BackupFailure?
        do throws(BackupFailure) {
            try await job.run()
            failure = nil
        } catch {
            failure = error
        }
        ticker.cancel()
        await ticker.value
        takeErrors(of: number)
        tellPendingErrors(number)
        await lookForMissing(number, job)
        if job.isCloned { records[number]?.info.isCloned = true }
        // What is cut off by the agent's end goes on in the next one.
        if isLeaving, records[number]?.goesOn == true { return }
        switch failure {
        case nil:
            appendProgress(number)
            if records[number]?.info.missing.length ?? 0 > 0 { report(.incomplete, number) }
            report(.copied, number)
        case .cancelled:
            tellSpoilt(number)
            report(.copyStopped, number)
        // It goes on in the next agent.
        case .suspended: break
        case .failed(let failure): report(.copyFailed(noting(jobFailure(failure, number), number)), number)
        }
    }

    // MARK: Progress

    /// Looks ten times a second at how far the job is, until the task is cancelled.
    private func tick(_ number: JobNumber, _ job: BackupJob) async {
        while !Task.isCancelled {
            // Ends early when the job does.
            try? await Task.sleep(for: .milliseconds(100))
            guard !Task.isCancelled, let record = records[number] else { return }
            let isDue = clock() - record.lastProgressTime >= 1_000_000_000 || log.isWatched(number)
            if isDue { appendProgress(number) }
            tellDueErrors(number)
            await lookForMissing(number, job)
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

    /// Gives the target up, unless it is complete by now. The guest and the drive do not wait for that, and it does not
    /// wait for staging. The job's end waits for neither where that takes long: it goes on in the background.
    func giveUp(_ number: JobNumber) async {
        await letGo(number)
        let keeps = records[number]?.spec.keepsTarget ?? false
        let isComplete = await records[number]?.target?.giveUp(keep: keeps, atOnce: true) ?? false
        // A backup that is read is closed with them, and may be used by the next job.
        await smallFilesRemoved(number)
        report(isComplete ? .targetCompleted : .targetAbandoned, number)
    }

    // MARK: Failures

    func jobFailure(_ failure: IOFailure, _ number: JobNumber) -> JobFailure {
        let record = records[number]
        let drive = record?.spec.drive ?? ""
        let error =
            switch failure.side {
            case .source: AgentError(failure.error, of: .source, subject: drive)
            case .target: AgentError(failure.error, of: .destination, subject: record?.info.target ?? "")
            case .staging: AgentError(lostPointInTimeBy: failure.error, drive: drive)
            }
        return JobFailure(
            error: error, ioError: JobIOError(failure))
    }

    func finishFailure(_ error: BlockError, _ target: any JobTarget) -> JobFailure {
        JobFailure(
            error: target.endedWhileFlushing
                ? AgentError(.flushInterrupted, error.message, subject: target.name)
                : AgentError(error, of: .destination, subject: target.name),
            // Nothing went wrong with one that was given up.
            ioError: error.code == .cancelled
                ? nil
                : JobIOError(
                    side: .target,
                    operation: error.code == .dataLost ? .flush : target.failedOperation ?? .finish,
                    range: error.range,
                    errno: error.errno, message: error.message))
    }
}

extension JobIOError {
    init(_ failure: IOFailure) {
        let side: Side =
            switch failure.side {
            case .source: .source
            case .target: .target
            case .staging: .staging
            }
        let operation: Operation =
            failure.error.code == .dataLost ? .flush : failure.operation == .read ? .read : .write
        self.init(
            side: side, operation: operation, range: failure.range, errno: failure.error.errno,
            message: failure.error.message)
    }
}
