internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup verify`: reads a backup back.
struct VerifyCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Read a backup back and report damage.",
        discussion: """
            Compares what TARGET holds with its manifest, TARGET.manifest.json, and prints a line for each place that is \
            damaged or cannot be read. Exits with 0 when all is as it was written, 1 when it is not, 3 when it is, but lacks \
            what could not be read or written when it was made. What the backup lies on (--sync top and none) is not read. \
            Ctrl-C leaves the job running (exit status 130).

            Examples:
              drive-backup verify /backup/vm1.qcow2
              drive-backup verify /backup/vm1.qcow2 --speed 50M --detach
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The backup.")
    var target: String

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("Bytes a second to read at most, such as 50M; 0 is unlimited.", valueName: "rate"),
        transform: parseRate)
    var speed: Int64 = 0

    @Option(help: ArgumentHelp("The job's id (default: verify- and the file's name).", valueName: "id"))
    var jobID: String?

    @Flag(help: "Return once the job has started.")
    var detach = false

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        var request = VerifyRequest()
        request.target = try session.surroundings.absolute(target)
        request.speed = speed
        request.jobID = jobID ?? ""
        request.detach = detach
        let (client, final) = (try await session.connect(), request)
        var story = JobStory(id: request.jobID)
        story.type = .verify
        return try await JobWatch(session: session, client: client, isStart: true).run(
            story, detach: detach, what: "couldn't verify \(target)"
        ) { () async throws(RPCStatus) in try await client.backups.verify(final) }
    }
}
