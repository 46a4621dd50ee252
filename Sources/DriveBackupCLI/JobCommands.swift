internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup job`: looks at jobs and tells them what to do.
struct JobCommands: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "job",
        abstract: "List jobs, watch them, pause them, cancel them.",
        discussion: """
            Examples:
              drive-backup job list
              drive-backup job watch vm1
              drive-backup job set-speed vm1 20M
              drive-backup job cancel vm1
            """,
        subcommands: [
            JobListCommand.self, JobShowCommand.self, JobWatchCommand.self, JobPauseCommand.self,
            JobResumeCommand.self, JobCancelCommand.self, JobSetSpeedCommand.self, JobFinalizeCommand.self,
            JobDismissCommand.self,
        ])

    @OptionGroup var global: GlobalOptions

    func run() throws { throw Self.missingVerb }
}

struct JobListCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List the jobs.",
        discussion: """
            With --all there are also the ended jobs that the agent remembers (see its options --history-age and \
            --history-count), oldest first, each with its result, how long it took, what it copied and at what rate, \
            and how many operations failed.
            """)

    @OptionGroup var global: GlobalOptions

    @Flag(help: "Ended jobs, too, with what became of them.")
    var all = false

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let jobs = try await session.withAgent("couldn't list the jobs") { client throws(RPCStatus) in
            try await client.jobs.list(all: all)
        }
        if session.json {
            for job in jobs { session.print(job) }
        } else if jobs.isEmpty {
            session.console.print(all ? "no jobs" : "no jobs; --all shows ended ones, too", to: .error)
        } else {
            let table = all ? JobText.history(jobs) : JobText.table(jobs)
            for line in table.lines { session.console.print(line) }
        }
        return .done
    }
}

struct JobShowCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "show",
        abstract: "Tell the whole story of a job; of the last of that id if it has ended.")

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The job's id.")
    var id: String

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let job = try await session.withAgent("couldn't show the job \(id)") { client throws(RPCStatus) in
            try await client.jobs.get(id)
        }
        if session.json {
            session.print(job)
        } else {
            for line in JobText.story(job, prefix: session.prefix) { session.console.print(line) }
        }
        return .done
    }
}

struct JobWatchCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "watch",
        abstract: "Stay with a job until it ends, and exit with its result.",
        discussion: """
            The exit status is the job's result: 0 completed, 3 completed with ranges missing, 1 failed, 4 cancelled. \
            Ctrl-C leaves the job running (exit status 130). With --json each event has a sequence number; \
            --after goes on where another watch left off.

            Examples:
              drive-backup job watch vm1
              drive-backup --json job watch vm1 --after 120
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The job's id.")
    var id: String

    @Option(help: ArgumentHelp("Only events with a higher sequence number.", valueName: "n"))
    var after: UInt64?

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let client = try await session.connect()
        let what = "couldn't watch the job \(id)"
        var story = JobStory(id: id)
        if !session.json {
            do throws(RPCStatus) {
                story = JobStory(try await client.jobs.get(id))
            } catch {
                await client.close()
                throw CommandFailure(what, error)
            }
        }
        let watch = JobWatch(session: session, client: client, isStart: false)
        guard story.end == nil || (after ?? .max) < story.lastSequence else {
            return try await watch.tell(story)
        }
        // Programs get the events from the first; people what is, and then what happens. Only an end that the job
        // itself does not tell whole is taken from its events.
        let isKnown = after == nil && !session.json && story.state != .concluded
        let first = isKnown ? story.lastSequence : after ?? 0
        story.lastSequence = first
        // Those events are still to come, whatever is known of what they lead to.
        if after != nil { story.forgetEnd() }
        return try await watch.run(story, introduce: isKnown, what: what) { () async throws(RPCStatus) in
            try await client.jobs.watch(id, after: first)
        }
    }
}
