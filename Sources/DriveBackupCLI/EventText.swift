internal import DriveBackupClient

/// Events in words for people.
enum EventText {
    /// The event in one line: number, time, job, and what happened.
    static func line(_ event: JobEvent) -> String {
        let number = ColumnText.padded("\(event.sequence)", to: 6, right: true)
        let time = TimeText.instant(nanoseconds: event.time)
        return
            "\(number)  \(time)  \(ColumnText.printable(event.jobID)): \(ColumnText.printable(text(event)))"
    }

    private static func text(_ event: JobEvent) -> String {
        switch event.event {
        case .started(let started):
            // Without a drive a backup is verified, or restored to a file.
            guard !started.drive.isEmpty else { return "started: \(started.target) (\(started.format))" }
            let words = [started.sync.name, started.format].filter { !$0.isEmpty }.joined(separator: ", ")
            return "started: \(started.drive) to \(started.target) (\(words))"
        case .stateChanged(let change):
            let reason = change.pauseReason.isUnspecified ? "" : " (\(change.pauseReason.name))"
            let error = change.pauseError.map { ": \(JobStory.sentence($0))" } ?? ""
            return change.state.name + reason + error
        case .progress(let progress):
            return amount(progress)
        case .ioError(let error):
            let what = error.action == .warn ? "warning" : "\(error.operation.name) error"
            return "\(error.side.name) \(what): \(JobStory.sentence(error))"
        case .pending:
            return "waits for 'job finalize'"
        case .completed(let completed):
            guard completed.result != .completed else { return "completed" }
            let ranges = completed.missing.prefix(3).map { "\($0.length) bytes at offset \($0.offset)" }
            let more = completed.missing.count > ranges.count ? ["..."] : []
            let places = ranges.isEmpty ? "" : " (\((ranges + more).joined(separator: ", ")))"
            return "completed, \(ByteSize.text(completed.missingBytes)) missing\(places)"
        case .failed(let failed):
            return "failed: \(failed.error?.message ?? "")"
        case .cancelled(let cancelled):
            return "cancelled" + (cancelled.progress.map { " at \(amount($0))" } ?? "")
        case nil:
            return "an event that this client does not know"
        }
    }

    private static func amount(_ progress: Progress) -> String {
        let percent = ProgressBar(name: "", current: progress.current, total: progress.total).percent
        return "\(percent)%, \(ByteSize.text(progress.current)) of \(ByteSize.text(progress.total))"
    }
}
