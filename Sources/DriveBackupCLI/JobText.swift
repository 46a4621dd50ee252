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
        let words = [job.sync.isUnspecified ? "" : job.sync.name, job.format].filter { !$0.isEmpty }
        let kind = words.isEmpty ? "" : " (\(words.joined(separator: ", ")))"
        let names = "backup of \(ColumnText.printable(job.drive)) to \(ColumnText.printable(job.target))"
        var lines = ["\(ColumnText.printable(job.id)): \(names)\(kind)"]
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
        if !job.group.isEmpty {
            add("group", job.grouped ? "\(job.group), which completes together" : job.group)
        }
        if job.restarts > 0 { add("restarts", "\(job.restarts) of the agent while it ran") }
        if let staging = job.staging {
            add("staging", "\(ByteSize.text(staging.used)) of at most \(ByteSize.text(staging.limit))")
        }
        add("instant", job.pointInTime > 0 ? TimeText.instant(nanoseconds: job.pointInTime) : "not fixed yet")
        if job.endedAt > 0 {
            let start = job.pointInTime > 0 ? job.pointInTime : job.createdAt
            let time = TimeText.words(TimeText.span(from: start, to: job.endedAt))
            add("ended", "\(TimeText.instant(nanoseconds: job.endedAt)), after \(time)")
        }
        if let error = job.error {
            add("error", error.message + (error.reason.isEmpty ? "" : " [\(error.reason)]"))
        }
        if let next = next(job) { add("next", "\(prefix) job \(next) \(job.id)") }
        return lines
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
