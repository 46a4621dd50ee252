internal import ArgumentParser
internal import DriveBackupClient

/// A command that tells one job to do something.
private protocol JobVerbCommand: ToolCommand {
    var id: String { get }

    /// What is done, for the message if it is refused: `pause`.
    var verb: String { get }

    func tell(_ jobs: JobCalls) async throws(RPCStatus) -> Job
}

extension JobVerbCommand {
    var verb: String { Self.configuration.commandName ?? "" }

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let job = try await session.withAgent("couldn't \(verb) the job \(id)") { client throws(RPCStatus) in
            try await tell(client.jobs)
        }
        if session.json { session.print(job) } else { session.console.print(JobText.line(job)) }
        return .done
    }
}

struct JobPauseCommand: JobVerbCommand {
    static let configuration = CommandConfiguration(
        commandName: "pause", abstract: "Stop copying until 'job resume'; the point in time stays.")

    @OptionGroup var global: GlobalOptions
    @Argument(help: "The job's id.") var id: String

    func tell(_ jobs: JobCalls) async throws(RPCStatus) -> Job { try await jobs.pause(id) }
}

struct JobResumeCommand: JobVerbCommand {
    static let configuration = CommandConfiguration(
        commandName: "resume", abstract: "Go on after 'job pause', or after an error has paused the job.")

    @OptionGroup var global: GlobalOptions
    @Argument(help: "The job's id.") var id: String

    func tell(_ jobs: JobCalls) async throws(RPCStatus) -> Job { try await jobs.resume(id) }
}

struct JobCancelCommand: JobVerbCommand {
    static let configuration = CommandConfiguration(
        commandName: "cancel",
        abstract: "Give a job up, or end one of --sync none.",
        discussion: """
            A new target is removed (unless the job was started with --keep-target); an existing one stays, written in \
            part. A job of --sync none ends well by it: what was saved is copied, and the target is completed; a second \
            cancel, or --force, gives it up.
            """)

    @OptionGroup var global: GlobalOptions
    @Argument(help: "The job's id.") var id: String

    @Flag(help: "Give up a job of --sync none, too.")
    var force = false

    func tell(_ jobs: JobCalls) async throws(RPCStatus) -> Job { try await jobs.cancel(id, force: force) }
}

struct JobSetSpeedCommand: JobVerbCommand {
    static let configuration = CommandConfiguration(
        commandName: "set-speed", abstract: "Change how fast a job copies at most.",
        discussion: """
            Examples:
              drive-backup job set-speed vm1 20M
              drive-backup job set-speed vm1 0        as fast as it can
            """)

    @OptionGroup var global: GlobalOptions
    @Argument(help: "The job's id.") var id: String

    @Argument(
        help: ArgumentHelp("Bytes a second, such as 50M; 0 is unlimited.", valueName: "rate"),
        transform: parseRate)
    var speed: Int64

    var verb: String { "set the speed of" }

    func tell(_ jobs: JobCalls) async throws(RPCStatus) -> Job {
        try await jobs.setSpeed(id, bytesPerSecond: speed)
    }
}

struct JobFinalizeCommand: JobVerbCommand {
    static let configuration = CommandConfiguration(
        commandName: "finalize", abstract: "End a job that was started with --manual-finalize and is pending."
    )

    @OptionGroup var global: GlobalOptions
    @Argument(help: "The job's id.") var id: String

    func tell(_ jobs: JobCalls) async throws(RPCStatus) -> Job { try await jobs.finalize(id) }
}

struct JobDismissCommand: JobVerbCommand {
    static let configuration = CommandConfiguration(
        commandName: "dismiss", abstract: "Forget a job that was started with --manual-dismiss and has ended."
    )

    @OptionGroup var global: GlobalOptions
    @Argument(help: "The job's id.") var id: String

    func tell(_ jobs: JobCalls) async throws(RPCStatus) -> Job { try await jobs.dismiss(id) }
}
