internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup start-group`: starts backups of several drives at one instant and stays with them.
struct StartGroupCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "start-group",
        abstract: "Copy several drives as they are at one instant.",
        discussion: """
            Prints the jobs' ids, a line each, once the point in time is fixed for all of them; if one cannot be started, none \
            is, and no file is left. Each job is its drive's own afterwards: 'drive-backup job' shows and ends it alone. With \
            --completion grouped they end together: those that have copied everything wait for the others, all targets get \
            their names or none does, and when one job fails or is cancelled the others are cancelled. The exit status is \
            that of the job that ended worst: 1 failed, 4 cancelled, 3 completed with ranges missing, 0 completed.

            Examples:
              drive-backup start-group vm1=/backup/vm1.qcow2 vm2=/backup/vm2.qcow2
              drive-backup start-group a=/backup/a b=/backup/b --speed 50M --detach
              drive-backup start-group a=/backup/a b=/backup/b --completion grouped
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(
        help: ArgumentHelp("A drive's id and the file that becomes its copy.", valueName: "drive=target"))
    var backups: [String]

    @OptionGroup var options: BackupOptions

    @Option(help: "individual: each job ends for itself; grouped: all complete, or none.")
    var completion: CompletionWord = .individual

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let request = try request(in: session.surroundings)
        let client = try await session.connect()
        let watch = GroupWatch(session: session, client: client, ids: request.backups.map(\.drive))
        return try await watch.run(detach: options.detach) { () async throws(RPCStatus) in
            try await client.backups.startGroup(request)
        }
    }

    /// The command line as the agent takes it.
    func request(in surroundings: Surroundings) throws(CommandFailure) -> StartGroupRequest {
        var request = StartGroupRequest()
        for backup in backups {
            guard let equals = backup.firstIndex(of: "="), equals != backup.startIndex,
                backup.index(after: equals) != backup.endIndex
            else { throw .usage("'\(backup)' is not of the form DRIVE=TARGET") }
            request.backups.append(
                try options.request(
                    drive: String(backup[..<equals]), target: String(backup[backup.index(after: equals)...]),
                    in: surroundings))
        }
        request.completion = completion == .individual ? .unspecified : completion.completion
        request.detach = options.detach
        request.requestKey = options.requestKey ?? ""
        return request
    }
}
