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
            target is called TARGET.partial. Ctrl-C leaves the job running (exit status 130).

            Examples:
              drive-backup start vm1 /backup/vm1.qcow2
              drive-backup start vm1 /backup/vm1.raw --format raw --speed 50M
              drive-backup start vm1 /backup/vm1-top.qcow2 --sync top
              drive-backup start vm1 /dev/vg/vm1 --mode existing --format raw
              drive-backup start vm1 /backup/vm1.qcow2 --overwrite --detach
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The drive's id.")
    var drive: String

    @Argument(help: "The file that becomes the copy.")
    var target: String

    @Option(
        help:
            "What to copy: full, the whole drive; top, only what its top image holds, on the same backing file."
    )
    var sync: SyncWord = .full

    @Option(help: "raw or qcow2 (default: the drive's; with --mode existing the target's own).")
    var format: FormatWord?

    @Option(
        help:
            "absolute-paths: make a new image; existing: write into one that is there and has the drive's size."
    )
    var mode: ModeWord = .absolutePaths

    @Flag(help: "Replace a file of the target's name, once the new one is whole.")
    var overwrite = false

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("Bytes a second to copy at most, such as 50M; 0 is unlimited.", valueName: "rate"),
        transform: parseRate)
    var speed: Int64 = 0

    @Option(help: ArgumentHelp("The job's id (default: the drive's).", valueName: "id"))
    var jobID: String?

    @Option(
        help: ArgumentHelp(
            "Makes a retry harmless: the same key gives the same job for a day.", valueName: "key"))
    var requestKey: String?

    @Flag(help: "Return once the point in time is fixed.")
    var detach = false

    @Flag(help: "When all is copied wait for 'drive-backup job finalize'.")
    var manualFinalize = false

    @Flag(help: "Keep the job at its end until 'drive-backup job dismiss'.")
    var manualDismiss = false

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let request = try request(in: session.surroundings)
        let client = try await session.connect()
        let watch = JobWatch(session: session, client: client, isStart: true)
        let id = request.jobID.isEmpty ? request.drive : request.jobID
        return try await watch.run(
            JobStory(id: id), detach: detach, what: "couldn't start the backup of \(drive) to \(target)"
        ) { () async throws(RPCStatus) in try await client.backups.start(request) }
    }

    /// The command line as the agent takes it.
    func request(in surroundings: Surroundings) throws(CommandFailure) -> BackupRequest {
        var request = BackupRequest()
        request.drive = drive
        request.target = try surroundings.absolute(target)
        request.sync = sync.mode
        request.format = format?.rawValue ?? ""
        request.mode = mode.mode
        request.overwrite = overwrite
        request.speed = speed
        request.jobID = jobID ?? ""
        request.requestKey = requestKey ?? ""
        request.detach = detach
        request.manualFinalize = manualFinalize
        request.manualDismiss = manualDismiss
        return request
    }
}
