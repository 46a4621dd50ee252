internal import BackupJobs
internal import BlockIO
internal import Logging

// Errors that do not end a job: told as events, kept for those who ask, and the reason of a pause.

extension JobManager {
    /// How many ranges are told of what is missing.
    static var missingBound: Int { 256 }

    /// Has the job tell its errors here. Before its point in time is fixed.
    func listen(to job: BackupJob, _ number: JobNumber) async {
        guard let inbox = records[number]?.inbox else { return }
        await job.onWarning { failure in
            // Ends at once: it only tells the manager.
            guard failure.error.code != .noSpace else { return _ = Task { await self.warn(failure, number) } }
            // A guest may try again and again.
            var error = JobIOError(failure)
            error.action = .warn
            if inbox.put(error) { Task { await self.takeErrors(of: number) } }
        }
        await job.onError { failure, action in
            var error = JobIOError(failure)
            error.action =
                switch action {
                case .report: .report
                case .ignore: .ignore
                case .stop: .stop
                }
            // As above.
            if inbox.put(error) { Task { await self.takeErrors(of: number) } }
        }
    }

    /// Takes up the errors that the job's data path has told.
    func takeErrors(of number: JobNumber) {
        guard let inbox = records[number]?.inbox else { return }
        let errors = inbox.take()
        if !errors.isEmpty { save(number) }
        for error in errors {
            tell(records[number]?.errors.note(error, now: clock()) ?? [], number)
            if error.action == .ignore { records[number]?.isMissingKnown = false }
            // Somebody may have resumed it since.
            if error.action == .stop, records[number]?.control.isHalted == true { halted(number, by: error) }
        }
    }

    /// Several requests that were in flight may fail: the first is what the job is paused by, and the log says so once.
    private func halted(_ number: JobNumber, by error: JobIOError) {
        let wasHalted = records[number]?.machine.pauseError != nil
        report(.copyHalted(error), number)
        guard !wasHalted, let record = records[number], record.machine.pauseError != nil else { return }
        logger.warning("The job \(record.spec.jobID) is paused: \(error.message)")
    }

    /// Tells errors that were held back: the next agent would not.
    func tellPendingErrors(_ number: JobNumber) {
        tell(records[number]?.errors.takePending(now: clock()) ?? [], number)
    }

    /// Tells errors that were held back, when it is time.
    func tellDueErrors(_ number: JobNumber) {
        tell(records[number]?.errors.due(now: clock()) ?? [], number)
    }

    /// Asks the job what its target lacks, if that may have changed.
    func lookForMissing(_ number: JobNumber, _ job: BackupJob) async {
        guard records[number]?.isMissingKnown == false else { return }
        records[number]?.isMissingKnown = true
        // What a backup lacks that is read back was missing before.
        let before = records[number].flatMap { $0.spec.work == .backup ? nil : $0.manifest }
        guard let before, before.missingBytes > 0 else {
            records[number]?.info.missing = await job.missing(limit: Self.missingBound)
            return
        }
        var missing = await job.missing(limit: .max)
            .joined(with: BackupJob.Missing(length: before.missingBytes, ranges: before.missing))
        missing.ranges = Array(missing.ranges.prefix(Self.missingBound))
        records[number]?.info.missing = missing
    }

    private func tell(_ errors: [JobIOError], _ number: JobNumber) {
        guard let record = records[number], record.started != nil, !errors.isEmpty else { return }
        let events = log.append(errors.map { .ioError($0) }, job: number, id: record.spec.jobID)
        if let last = events.last { records[number]?.info.lastSequence = last.sequence }
    }

    /// Tells the operator what a job's data path found worth telling.
    private func warn(_ failure: IOFailure, _ number: JobNumber) {
        guard let record = records[number] else { return }
        logger.warning("The job \(record.spec.jobID): \(failure.error.message)")
        var warning = JobIOError(failure)
        warning.action = .warn
        guard record.started != nil else {
            records[number]?.earlyWarnings.append(warning)
            return
        }
        guard record.machine.state != .concluded else { return }
        tell([warning], number)
    }
}
