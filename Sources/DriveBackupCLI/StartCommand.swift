internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup start`: starts a backup and stays with it.
struct StartCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "start",
        abstract: "Copy a drive, as it is now, and watch it.",
        discussion: """
            Prints the job's id once the point in time is fixed: nothing that is written to the drive after that is \
            in the copy. Then shows progress until the copy is whole and safe on its disk, and exits with the \
            result: 0 completed, 3 completed with ranges missing, 1 failed, 4 cancelled. Until it is whole the \
            target is called TARGET.partial. Ctrl-C leaves the job running (exit status 130). A job of --sync none runs \
            until 'drive-backup job cancel', and is complete then.

            Examples:
              drive-backup start vm1 /backup/vm1.qcow2
              drive-backup start vm1 /backup/vm1.raw --format raw --speed 50M
              drive-backup start vm1 /backup/vm1-top.qcow2 --sync top
              drive-backup start vm1 /backup/vm1-now.qcow2 --sync none --detach
              drive-backup start vm1 /dev/vg/vm1 --mode existing --format raw
              drive-backup start vm1 /backup/vm1.qcow2 --overwrite --detach
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The drive's id.")
    var drive: String

    @Argument(help: "The file that becomes the copy.")
    var target: String

    @OptionGroup var options: BackupOptions

    @Option(help: ArgumentHelp("The job's id (default: the drive's).", valueName: "id"))
    var jobID: String?

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let request = try request(in: session.surroundings)
        let client = try await session.connect()
        let watch = JobWatch(session: session, client: client, isStart: true)
        let id = request.jobID.isEmpty ? request.drive : request.jobID
        return try await watch.run(
            JobStory(id: id), detach: options.detach,
            what: "couldn't start the backup of \(drive) to \(target)"
        ) { () async throws(RPCStatus) in try await client.backups.start(request) }
    }

    /// The command line as the agent takes it.
    func request(in surroundings: Surroundings) throws(CommandFailure) -> BackupRequest {
        var request = try options.request(drive: drive, target: target, in: surroundings)
        request.jobID = jobID ?? ""
        request.requestKey = options.requestKey ?? ""
        request.detach = options.detach
        return request
    }
}
