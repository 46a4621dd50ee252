internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup` itself: its commands and options. See `CommandLineTool` for how they are run.
struct DriveBackupCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "drive-backup",
        abstract: "Back up virtual disks as they are at one instant.",
        discussion: """
            drive-backup start vm1 /backup/vm1.qcow2     copy the drive vm1 and watch it
            """,
        version: clientVersion,
        subcommands: [
            StartCommand.self, StartGroupCommand.self, VerifyCommand.self, RestoreCommand.self,
            JobCommands.self, DriveCommands.self,
            ExportCommands.self, EventsCommand.self, AgentCommands.self,
        ])

    @OptionGroup var global: GlobalOptions

    func run() throws { throw Self.missingVerb }
}

extension ParsableCommand {
    /// What a command that only groups others says when none of them is named.
    static var missingVerb: ValidationError {
        let names = configuration.subcommands.compactMap { $0.configuration.commandName }
        return ValidationError("Say which: \(names.joined(separator: ", ")).")
    }
}

/// What is accepted before and after every command.
struct GlobalOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "unix:PATH, tcp://HOST:PORT; else $DRIVE_BACKUP_AGENT",
            valueName: "address"))
    var agent: String?

    @Flag(help: "Print JSON, one object a line.")
    var json = false
}

/// A command that does something.
protocol ToolCommand: ParsableCommand {
    var global: GlobalOptions { get }

    /// What the command does, up to its end. The status is `done` unless a job that was watched ended otherwise.
    func run(in session: Session) async throws(CommandFailure) -> ExitStatus
}
