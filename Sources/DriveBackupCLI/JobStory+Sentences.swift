internal import DriveBackupClient

/// The story in words for people.
extension JobStory {
    /// `vm1 to /backup/vm1.qcow2`, as far as it is known.
    private var what: String {
        let name = ColumnText.printable(drive.isEmpty ? id : drive)
        return target.isEmpty ? name : "\(name) to \(ColumnText.printable(target))"
    }

    /// ` (full, qcow2)`, as far as it is known.
    private var how: String {
        let words = [sync.isUnspecified ? "" : sync.name, format].filter { !$0.isEmpty }
        return words.isEmpty ? "" : " (\(words.joined(separator: ", ")))"
    }

    private var amount: String { "\(ByteSize.text(current)) of \(ByteSize.text(total))" }

    var beginning: String {
        let size = total > 0 ? "\(ByteSize.text(total)) of " : ""
        let verb = sync == .none ? "keeping what is overwritten of" : "copying"
        return "\(verb) \(size)\(what)\(how), as it was at \(TimeText.instant(nanoseconds: startedAt))"
    }

    /// Why the job does not copy at the moment; nil if it does.
    var note: String? {
        switch state {
        case .created: "starting"
        case .paused: pauseReason == .error ? "error" : "paused"
        case .waiting: "waiting"
        case .pending: awaitsFinalize ? "pending" : "finishing"
        case .aborting: "ending"
        case .running where total > 0 && current >= total: "finishing"
        default: nil
        }
    }

    private var pauseCause: String { pauseError.map { ": \(ColumnText.printable($0.message))" } ?? "" }

    /// The line for a change of state that `previous` was before; nil if it says nothing new.
    func change(from previous: JobState) -> String? {
        switch state {
        case .paused where pauseReason == .error:
            "\(id) is paused because of an error, at \(amount)\(pauseCause); drive-backup job resume \(id) tries again"
        case .paused:
            "\(id) is paused at \(amount); drive-backup job resume \(id) goes on"
        case .running where previous == .paused:
            "\(id) goes on"
        case .aborting where sync == .none:
            "\(id) is ending"
        case .aborting:
            "\(id) is being given up"
        default: nil
        }
    }

    /// The line for a job that has done its work and may not end.
    var pending: String { "\(id) has copied everything and waits for: drive-backup job finalize \(id)" }

    /// The line for an error that did not have to end the job.
    static func sentence(_ error: IOErrorEvent) -> String {
        let action =
            switch error.action {
            case .ignore: "; left out"
            case .stop: "; paused"
            case .warn: " (a warning)"
            default: ""
            }
        let times = error.count > 1 ? " (\(error.count) times)" : ""
        return ColumnText.printable(error.message) + times + action
    }

    /// The last line: what was copied, where to, in what time; or what became of it. Nil before the end.
    var ending: String? {
        let time = TimeText.span(from: startedAt, to: endedAt)
        let hasTime = startedAt > 0 && endedAt > startedAt
        switch end {
        case .completed(let result, let missing):
            let verb = result == .completed ? "backed up" : "backed up, but not whole,"
            var line = "\(verb) \(what)\(how): \(ByteSize.text(total))"
            if hasTime {
                line += " in \(TimeText.words(time))"
                let seconds = Double(time.inNanoseconds) / 1e9
                if seconds >= 0.1 { line += ", \(ByteSize.rate(Int64(Double(total) / seconds)))" }
            }
            if result != .completed {
                line += "; \(ByteSize.text(missing)) could not be read or written and are missing"
            }
            return line
        case .failed(let error):
            let why = ColumnText.printable(error.message.isEmpty ? error.reason : error.message)
            return "backup of \(what) failed: \(why)"
        case .cancelled:
            return "backup of \(what) was cancelled at \(amount)"
                + (hasTime ? " after \(TimeText.words(time))" : "")
        case nil:
            return nil
        }
    }
}
