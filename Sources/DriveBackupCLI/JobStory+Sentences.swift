internal import DriveBackupClient

/// The story in words for people.
extension JobStory {
    /// `vm1 to /backup/vm1.qcow2`, as far as it is known.
    private var what: String {
        let target = ColumnText.printable(target)
        if type == .verify { return target.isEmpty ? ColumnText.printable(id) : target }
        if type == .restore { return drive.isEmpty ? target : "\(ColumnText.printable(drive)) (\(target))" }
        let name = ColumnText.printable(drive.isEmpty ? id : drive)
        return target.isEmpty ? name : "\(name) to \(target)"
    }

    /// The job's kind, as what failed.
    private var noun: String {
        switch type {
        case .verify: "verify of"
        case .restore: "restore to"
        default: "backup of"
        }
    }

    private func verb(_ result: JobResult) -> String {
        switch type {
        case .verify: "verified"
        case .restore: "restored"
        default: result == .completed ? "backed up" : "backed up, but not whole,"
        }
    }

    /// ` (full, qcow2)`, as far as it is known.
    private var how: String {
        let isBackup = type != .verify && type != .restore
        let words = [isBackup && !sync.isUnspecified ? sync.name : "", format].filter { !$0.isEmpty }
        return words.isEmpty ? "" : " (\(words.joined(separator: ", ")))"
    }

    private var amount: String { "\(ByteSize.text(current)) of \(ByteSize.text(total))" }

    var beginning: String {
        let size = total > 0 ? "\(ByteSize.text(total)) of " : ""
        if type == .verify { return "verifying \(size)\(what)" }
        if type == .restore { return "restoring \(size)to \(what)" }
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

    /// The line for a change of state that `previous` was before; nil if it says nothing new.
    func change(from previous: JobState) -> String? {
        switch state {
        case .paused where pauseReason == .error:
            "\(id) is paused because of an error\(pauseError.map(Self.cause) ?? ""), at \(amount); "
                + "drive-backup job resume \(id) tries again"
        case .paused:
            "\(id) is paused at \(amount); drive-backup job resume \(id) goes on"
        case .running where previous == .paused:
            "\(id) goes on"
        case .aborting where sync == .none:
            "\(id) is ending"
        // Nothing is undone when a verify ends.
        case .aborting where type != .verify:
            "\(id) is being given up"
        default: nil
        }
    }

    /// ` (target write, 65536 bytes at 1048576, errno 28)`
    private static func cause(_ error: IOErrorEvent) -> String {
        let place = error.length > 0 ? ", \(error.length) bytes at \(error.offset)" : ""
        return " (\(error.side.name) \(error.operation.name)\(place), errno \(error.errno))"
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
        let times = error.count > 1 ? " (\(error.count) in all)" : ""
        return ColumnText.printable(error.message) + times + action
    }

    /// `4096 bytes at 1048576, 512 bytes at 3145728 and more ('drive-backup job show' lists them)`.
    private static func places(_ ranges: [Range], of bytes: Int64) -> String {
        let shown = ranges.prefix(3)
        let places = shown.map { "\($0.length) bytes at \($0.offset)" }.joined(separator: ", ")
        guard ranges.count > shown.count || isCut(ranges, of: bytes) else { return places }
        return places + " and more ('drive-backup job show' lists them)"
    }

    /// Whether `ranges` are not all of the missing `bytes`.
    static func isCut(_ ranges: [Range], of bytes: Int64) -> Bool {
        Int64(saturating: ranges.reduce(0.0) { $0 + Double($1.length) }) < bytes
    }

    /// The last line: what was copied, where to, in what time; or what became of it. Nil before the end.
    var ending: String? {
        let time = TimeText.span(from: startedAt, to: endedAt)
        let hasTime = startedAt > 0 && endedAt > startedAt
        switch end {
        case .completed(let result, let missing, let ranges):
            var line = "\(verb(result)) \(what)\(how): \(ByteSize.text(total))"
            if hasTime {
                line += " in \(TimeText.words(time))"
                let seconds = Double(time.inNanoseconds) / 1e9
                if seconds >= 0.1 { line += ", \(ByteSize.rate(Int64(saturating: Double(total) / seconds)))" }
            }
            if type == .verify { line += result == .completed ? "; it is whole" : "; it is as it was made" }
            if result != .completed {
                line +=
                    type == .backup
                    ? "; \(ByteSize.text(missing)) could not be read or written and are missing"
                    : ", but \(ByteSize.text(missing)) are missing in it"
                if !ranges.isEmpty { line += ": " + Self.places(ranges, of: missing) }
            }
            return line
        case .failed(let error):
            let why = ColumnText.printable(error.message.isEmpty ? error.reason : error.message)
            return "\(noun) \(what) failed: \(why)"
        case .cancelled:
            return "\(noun) \(what) was cancelled at \(amount)"
                + (hasTime ? " after \(TimeText.words(time))" : "")
        case nil:
            return nil
        }
    }
}
