internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup drive`: the disks that the agent has open.
struct DriveCommands: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "drive",
        abstract: "List the agent's drives, add and remove them.",
        discussion: """
            Examples:
              drive-backup drive list
              drive-backup drive add vm1 /var/lib/vm/vm1.qcow2
              drive-backup drive remove vm1
            """,
        subcommands: [
            DriveListCommand.self, DriveShowCommand.self, DriveAddCommand.self, DriveRemoveCommand.self,
        ])

    @OptionGroup var global: GlobalOptions

    func run() throws { throw Self.missingVerb }
}

struct DriveListCommand: ToolCommand {
    static let configuration = CommandConfiguration(commandName: "list", abstract: "List the drives.")

    @OptionGroup var global: GlobalOptions

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let drives = try await session.withAgent("couldn't list the drives") { client throws(RPCStatus) in
            try await client.drives.list()
        }
        if session.json {
            for drive in drives { session.print(drive) }
        } else if drives.isEmpty {
            session.console.print("no drives; '\(session.prefix) drive add ID FILE' adds one", to: .error)
        } else {
            for line in DriveText.table(drives).lines { session.console.print(line) }
        }
        return .done
    }
}

struct DriveShowCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "show", abstract: "Show a drive and its chain of images.")

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The drive's id.")
    var id: String

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let drive = try await session.withAgent("couldn't show the drive \(id)") { client throws(RPCStatus) in
            try await client.drives.get(id)
        }
        if session.json {
            session.print(drive)
        } else {
            for line in DriveText.story(drive) { session.console.print(line) }
        }
        return .done
    }
}

struct DriveAddCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "add",
        abstract: "Open an image as a drive, now and after every restart of the agent.",
        discussion: """
            Say the format of a raw image: a guest can write into a raw disk what makes it look like another format.

            Examples:
              drive-backup drive add vm1 /var/lib/vm/vm1.qcow2
              drive-backup drive add iso ./install.img --format raw --read-only
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The drive's id: a letter, then letters, digits, '-', '.', '_'.")
    var id: String

    @Argument(help: "The image, on the agent's host.")
    var file: String

    @Option(help: "raw or qcow2 (default: found out now, and kept).")
    var format: FormatWord?

    @Flag(help: "Never write to it.")
    var readOnly = false

    @Option(
        help:
            "writeback (default): through the host's page cache; none: past it, for guests that cache themselves."
    )
    var cache: CacheWord?

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let path = try session.surroundings.absolute(file)
        let what = "couldn't add the drive \(id)"
        let drive = try await session.withAgent(what) { client throws(RPCStatus) in
            try await client.drives.add(
                id, file: path, format: format?.rawValue ?? "", readOnly: readOnly,
                cache: cache?.rawValue ?? "")
        }
        // An agent that does not know the word takes no notice of it.
        if cache == CacheWord.none, drive.cache != "none" {
            try await session.withAgent(
                "\(what) past the page cache, which this agent is too old for; removing it again failed"
            ) {
                client throws(RPCStatus) in try await client.drives.remove(id)
            }
            throw CommandFailure(.failed, "\(what) past the page cache: this agent is too old for that")
        }
        if session.json { session.print(drive) } else { session.console.print(DriveText.line(drive)) }
        return .done
    }
}

struct DriveRemoveCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "remove", abstract: "Close a drive and forget it. Its image stays as it is.")

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The drive's id.")
    var id: String

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        try await session.withAgent("couldn't remove the drive \(id)") { client throws(RPCStatus) in
            try await client.drives.remove(id)
        }
        if session.json {
            session.print(RemoveDriveResponse())
        } else {
            session.console.print("\(id) is removed")
        }
        return .done
    }
}
