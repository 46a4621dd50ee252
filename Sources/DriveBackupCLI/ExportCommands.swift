internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup export`: what the agent serves over NBD.
struct ExportCommands: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "export",
        abstract: "Serve drives and points in time over NBD.",
        discussion: """
            Examples:
              drive-backup export add vm1 unix:/run/vm/vm1.sock
              drive-backup export add --snapshot-of vm1 unix:/run/vm/vm1-snapshot.sock
              drive-backup export list
              drive-backup export remove vm1
            """,
        subcommands: [ExportListCommand.self, ExportAddCommand.self, ExportRemoveCommand.self])

    @OptionGroup var global: GlobalOptions

    func run() throws { throw Self.missingVerb }
}

struct ExportListCommand: ToolCommand {
    static let configuration = CommandConfiguration(commandName: "list", abstract: "List the exports.")

    @OptionGroup var global: GlobalOptions

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let exports = try await session.withAgent("couldn't list the exports") { client throws(RPCStatus) in
            try await client.exports.list()
        }
        if session.json {
            for export in exports { session.print(export) }
        } else if exports.isEmpty {
            session.console.print(
                "no exports; '\(session.prefix) export add DRIVE ADDRESS' adds one", to: .error)
        } else {
            for line in ExportText.table(exports).lines { session.console.print(line) }
            for line in ExportText.problems(exports) { session.console.print(line) }
        }
        return .done
    }
}

struct ExportAddCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "add",
        abstract: "Serve a drive, now and after every restart of the agent; or the point in time of a job.",
        usage: """
            drive-backup export add DRIVE ADDRESS [--name NAME] [--read-only]
            drive-backup export add --snapshot-of JOB ADDRESS [--name NAME]
            """,
        discussion: """
            ADDRESS is unix:PATH or tcp://HOST:PORT, loopback only, numeric or localhost: whoever can connect can read, and write what is not \
            read-only. Port 0 lets the system choose. Several exports may be at one address; the first there also answers to \
            the empty name.

            With --snapshot-of the drive of a running job is served as it was at the job's point in time, read-only, until \
            the job ends; guests write on meanwhile. Its name is JOB-snapshot by default.

            Examples:
              drive-backup export add vm1 unix:/run/vm/vm1.sock
              drive-backup export add vm1 tcp://127.0.0.1:10809 --name disk --read-only
              drive-backup export add --snapshot-of vm1 unix:/run/vm/snapshot.sock
              nbdcopy 'nbd+unix:///?socket=/run/vm/snapshot.sock' /backup/vm1.raw
            """)

    @OptionGroup var global: GlobalOptions

    @Option(help: ArgumentHelp("Serve this job's point in time.", valueName: "job"))
    var snapshotOf: String?

    @Argument(
        help: ArgumentHelp(
            "The drive's id (not with --snapshot-of), and where to serve it.", valueName: "drive> <address"))
    var words: [String]

    @Option(
        help: ArgumentHelp(
            "What clients ask for (default: the drive's id, or JOB-snapshot).", valueName: "name"))
    var name: String?

    @Flag(help: "Refuse writes.")
    var readOnly = false

    func validate() throws {
        guard words.count == (snapshotOf == nil ? 2 : 1) else {
            throw ValidationError(
                snapshotOf == nil
                    ? "Give a drive and an address." : "With --snapshot-of give an address and nothing else.")
        }
    }

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let address = try session.surroundings.absoluteAddress(words.last ?? "")
        let drive = words.first ?? ""
        let what =
            snapshotOf.map { "couldn't export the point in time of \($0)" }
            ?? "couldn't export the drive \(drive)"
        let export = try await session.withAgent(what) { client throws(RPCStatus) in
            guard let snapshotOf else {
                return try await client.exports.add(
                    drive: drive, address: address, name: name ?? "", readOnly: readOnly)
            }
            return try await client.exports.addSnapshot(of: snapshotOf, address: address, name: name ?? "")
        }
        if session.json { session.print(export) } else { session.console.print(ExportText.line(export)) }
        return .done
    }
}

struct ExportRemoveCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "remove",
        abstract:
            "Serve an export no more and forget it. Requests that run end, then its clients are disconnected."
    )

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The export's name.")
    var name: String

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        try await session.withAgent("couldn't remove the export \(name)") { client throws(RPCStatus) in
            try await client.exports.remove(name)
        }
        if session.json {
            session.print(RemoveExportResponse())
        } else {
            session.console.print("\(ColumnText.printable(name)) is removed")
        }
        return .done
    }
}
