internal import DriveBackupClient

/// Jobs in words for people.
enum JobText {
    /// One word for where the job is: its result once it has one, else its state.
    static func state(_ job: Job) -> String {
        guard job.state == .concluded, !job.result.isUnspecified else { return job.state.name }
        return job.result == .completedWithErrors ? "incomplete" : job.result.name
    }

    static func table(_ jobs: [Job]) -> Table {
        var table = Table([
            ("JOB", .left), ("DRIVE", .left), ("STATE", .left), ("DONE", .right), ("SIZE", .right),
            ("TARGET", .left),
        ])
        for job in jobs {
            let percent = job.progress.map { "\(bar($0).percent)%" } ?? ""
            let size = job.progress.map { ByteSize.text($0.total) } ?? ""
            table.add([job.id, job.drive, state(job), percent, size, job.target])
        }
        return table
    }

    /// Jobs with what became of them, those that have not ended, too.
    static func history(_ jobs: [Job]) -> Table {
        var table = Table([
            ("JOB", .left), ("RESULT", .left), ("DURATION", .right), ("BYTES", .right), ("RATE", .right),
            ("ERRORS", .right), ("ENDED", .left), ("TARGET", .left),
        ])
        for job in jobs {
            let bytes = job.progress?.current ?? 0
            table.add([
                job.id, state(job), duration(job).map(TimeText.words) ?? "", ByteSize.text(bytes),
                rate(job) ?? "",
                "\(job.errorCount)", job.endedAt > 0 ? TimeText.instant(nanoseconds: job.endedAt) : "",
                job.target,
            ])
        }
        return table
    }

    /// From the point in time, or the acceptance where there was none, to the end; nil before that.
    private static func duration(_ job: Job) -> Duration? {
        guard job.endedAt > 0 else { return nil }
        return TimeText.span(from: job.pointInTime > 0 ? job.pointInTime : job.createdAt, to: job.endedAt)
    }

    /// What was copied in a second, on average; nil for jobs that have not ended or took no time to speak of.
    private static func rate(_ job: Job) -> String? {
        guard let bytes = job.progress?.current, bytes > 0, let time = duration(job) else { return nil }
        let seconds = Double(time.inNanoseconds) / 1e9
        return seconds >= 0.01 ? ByteSize.rate(Int64(saturating: Double(bytes) / seconds)) : nil
    }

    /// The job as it is, in one line: `vm1 is paused at 2.40 GiB of 20.0 GiB, 50.0 MiB/s at most`.
    static func line(_ job: Job) -> String {
        let verb =
            switch job.state {
            case .aborting where job.sync == .none: "is ending"
            case .aborting: "is being given up"
            case .concluded: result(job)
            default: "is \(job.state.name)"
            }
        var line = "\(ColumnText.printable(job.id)) \(verb)"
        if let progress = job.progress { line += " at \(amount(progress))" }
        if job.state != .concluded, job.speed > 0 { line += ", \(ByteSize.rate(job.speed)) at most" }
        return line
    }

    /// What there is to say about the job, in a few lines. `prefix` is how a command to its agent begins.
    static func story(_ job: Job, prefix: String) -> [String] {
        let isBackup = job.type != .verify && job.type != .restore
        let words = [isBackup && !job.sync.isUnspecified ? job.sync.name : "", job.format].filter {
            !$0.isEmpty
        }
        let kind = words.isEmpty ? "" : " (\(words.joined(separator: ", ")))"
        var lines = ["\(ColumnText.printable(job.id)): \(names(job))\(kind)"]
        func add(_ title: String, _ text: String) {
            lines.append("  \(ColumnText.padded(title, to: 8)) \(ColumnText.printable(text))")
        }
        var state = state(job)
        if job.pauseReason == .error { state += " because of an error" }
        if let progress = job.progress { state += ", \(bar(progress).percent)%: \(amount(progress))" }
        add("state", state)
        if job.state != .concluded {
            add("speed", job.speed > 0 ? "\(ByteSize.rate(job.speed)) at most" : "unlimited")
        }
        if !job.targetBusy.isEmpty { add("busy", job.targetBusy) }
        if let staging = job.staging {
            add("staging", "\(ByteSize.text(staging.used)) of at most \(ByteSize.text(staging.limit))")
        }
        if job.createdAt > 0 { add("asked", TimeText.instant(nanoseconds: job.createdAt)) }
        if isBackup {
            add(
                "instant",
                job.pointInTime > 0 ? TimeText.instant(nanoseconds: job.pointInTime) : "not fixed yet")
        }
        if job.endedAt > 0 {
            let time = duration(job).map(TimeText.words) ?? ""
            let rate = rate(job).map { ", \($0)" } ?? ""
            add("ended", "\(TimeText.instant(nanoseconds: job.endedAt)), after \(time)\(rate)")
        }
        if !job.group.isEmpty {
            add("group", job.group + (job.grouped ? ", all complete or none" : ""))
        }
        if job.restarts > 0 {
            add(
                "restarts",
                "the agent was restarted \(job.restarts == 1 ? "once" : "\(job.restarts) times") meanwhile")
        }
        let waits = [job.manualFinalize ? "finalize" : nil, job.manualDismiss ? "dismiss" : nil].compactMap {
            $0
        }
        if !waits.isEmpty { add("waits", "for \(waits.joined(separator: " and for "))") }
        let policies = [job.onSourceError, job.onTargetError].map { $0.isUnspecified ? "report" : $0.name }
        if policies != ["report", "report"] {
            add("policies", "\(policies[0]) for errors of the drive, \(policies[1]) for those of the target")
        }
        // A backup that did not complete has left none.
        let hasManifest = !isBackup || (job.result != .failed && job.result != .cancelled)
        if !job.manifest.isEmpty, hasManifest { add("manifest", job.manifest) }
        if job.cloned { add("cloned", "blocks of the drive are shared; the manifest has no checksums") }
        addTrouble(of: job, add)
        if let next = next(job) { add("next", "\(prefix) job \(next) \(job.id)") }
        return lines
    }

    private static func names(_ job: Job) -> String {
        let (drive, target) = (ColumnText.printable(job.drive), ColumnText.printable(job.target))
        return switch job.type {
        case .verify: "verify of \(target)"
        case .restore: "restore to \(drive.isEmpty ? target : "\(drive) (\(target))")"
        default: "backup of \(drive) to \(target)"
        }
    }

    /// What went wrong, and what of it is still wrong.
    private static func addTrouble(of job: Job, _ add: (String, String) -> Void) {
        if let error = job.error {
            add("error", error.message + (error.reason.isEmpty ? "" : " [\(error.reason)]"))
        }
        if let error = job.pauseError { add("cause", place(error)) }
        if job.missingBytes > 0 {
            add("missing", ByteSize.text(job.missingBytes))
            let shown = job.missing.prefix(shownRanges)
            for range in shown { add("", "\(range.length) bytes at \(range.offset)") }
            if job.missing.count > shown.count || JobStory.isCut(job.missing, of: job.missingBytes) {
                add("", "and more (--json lists the first 256)")
            }
        }
        if job.errorCount > 0 {
            add("failures", "\(job.errorCount), the last of them:")
            for error in job.errors { add("", place(error)) }
        }
    }

    /// How many ranges people are shown.
    private static let shownRanges = 8

    /// An error with what programs decide by: `target write, 65536 bytes at 1048576, errno 28, stop: Couldn't write ...`.
    private static func place(_ error: IOErrorEvent) -> String {
        var words = ["\(error.side.name) \(error.operation.name)"]
        if error.length > 0 { words.append("\(error.length) bytes at \(error.offset)") }
        if error.errno != 0 { words.append("errno \(error.errno)") }
        words.append(error.action.name)
        return words.joined(separator: ", ") + ": \(JobStory.sentence(error))"
    }

    private static func next(_ job: Job) -> String? {
        switch job.state {
        case .paused: "resume"
        case .pending: "finalize"
        case .running where job.sync == .none: "cancel"
        case .concluded where job.manualDismiss: "dismiss"
        default: nil
        }
    }

    private static func result(_ job: Job) -> String {
        switch job.result {
        case .completed: "has completed"
        case .completedWithErrors: "has completed, with ranges missing,"
        case .failed: "has failed"
        case .cancelled: "is cancelled"
        default: "has ended"
        }
    }

    private static func amount(_ progress: Progress) -> String {
        "\(ByteSize.text(progress.current)) of \(ByteSize.text(progress.total))"
    }

    private static func bar(_ progress: Progress) -> ProgressBar {
        ProgressBar(name: "", current: progress.current, total: progress.total)
    }
}
