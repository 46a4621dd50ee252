internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup restore`: writes a backup back.
struct RestoreCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore",
        abstract: "Write a backup to a new image or to a drive.",
        discussion: """
            All that the backup lies on is written, too. DESTINATION is a file when there is a slash in it, else a drive, \
            whose content is overwritten; nobody may have the drive open. What is read is compared with the backup's \
            manifest: a damaged backup makes no new image, and a drive that was written in part says so. Exits with the \
            result: 0 completed, 3 completed, but the backup lacks something, 1 failed, 4 cancelled. Ctrl-C leaves the job \
            running (exit status 130).

            Examples:
              drive-backup restore /backup/vm1.qcow2 ./vm1.raw --format raw
              drive-backup restore /backup/vm1.qcow2 vm1
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The backup.")
    var target: String

    @Argument(help: "The file that is made, or the drive that is overwritten.")
    var destination: String

    @Option(help: "raw or qcow2 (default: the backup's).")
    var format: FormatWord?

    @Flag(help: "Replace a file of that name, once the new one is whole.")
    var overwrite = false

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("Bytes a second to copy at most, such as 50M; 0 is unlimited.", valueName: "rate"),
        transform: parseRate)
    var speed: Int64 = 0

    @Option(
        help: """
            When the backup cannot be read: report, the job fails; stop, it is paused until 'drive-backup job resume'; \
            enospc or auto, it is paused if there is no space and fails otherwise; ignore, after a few more tries the range \
            is left out, and the job ends with exit status 3.
            """)
    var onSourceError: ErrorPolicyWord = .report

    @Option(help: "When the image or the drive cannot be written: the same.")
    var onTargetError: ErrorPolicyWord = .report

    @Option(help: ArgumentHelp("The job's id (default: restore- and the file's name).", valueName: "id"))
    var jobID: String?

    @Option(
        help: ArgumentHelp(
            "Makes a retry harmless: the same key gives the same job for a day.", valueName: "key"))
    var requestKey: String?

    @Flag(help: "Return once the job has started.")
    var detach = false

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let request = try request(in: session.surroundings)
        let client = try await session.connect()
        var story = JobStory(id: request.jobID)
        story.type = .restore
        return try await JobWatch(session: session, client: client, isStart: true).run(
            story, detach: detach, what: "couldn't restore \(target) to \(destination)"
        ) { () async throws(RPCStatus) in try await client.backups.restore(request) }
    }

    /// The command line as the agent takes it.
    func request(in surroundings: Surroundings) throws(CommandFailure) -> RestoreRequest {
        var request = RestoreRequest()
        request.target = try surroundings.absolute(target)
        if destination.utf8.contains(UInt8(ascii: "/")) {
            request.file = try surroundings.absolute(destination)
        } else {
            request.drive = destination
        }
        request.format = format?.rawValue ?? ""
        request.overwrite = overwrite
        request.speed = speed
        request.jobID = jobID ?? ""
        request.requestKey = requestKey ?? ""
        request.detach = detach
        request.onSourceError = onSourceError == .report ? .unspecified : onSourceError.policy
        request.onTargetError = onTargetError == .report ? .unspecified : onTargetError.policy
        return request
    }
}
