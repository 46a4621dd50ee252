internal import ArgumentParser
internal import DriveBackupClient

/// The options that a backup has, alone or in a group.
struct BackupOptions: ParsableArguments {
    @Option(
        help: """
            What to copy: full, the whole drive; top, only what its top image holds, on the same backing file; none, only \
            what is overwritten until the job is cancelled, on the drive's image.
            """)
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

    // It comes when the agent can do it.
    @Flag(help: .hidden)
    var rebase = false

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp("Bytes a second to copy at most, such as 50M; 0 is unlimited.", valueName: "rate"),
        transform: parseRate)
    var speed: Int64 = 0

    @Option(
        help: """
            When the drive cannot be read: report, the job fails; stop, it is paused until 'drive-backup job resume'; \
            enospc or auto, it is paused if there is no space and fails otherwise; ignore, after a few more tries the range \
            is left out, and the job ends with exit status 3.
            """)
    var onSourceError: ErrorPolicyWord = .report

    @Option(
        help:
            "When the target cannot be written: the same. A flush that fails fails the job under every policy."
    )
    var onTargetError: ErrorPolicyWord = .report

    @Option(
        help: """
            When old content cannot be saved before a guest overwrites it: break-snapshot, the job fails; \
            break-guest-write, the guest's write does.
            """)
    var onCbwError: CbwErrorWord = .breakSnapshot

    @Option(
        parsing: .unconditional,
        help: ArgumentHelp(
            "How long the saving of one piece may take; 0 is no limit. (default: 5)", valueName: "seconds"),
        transform: parseTimeout)
    var cbwTimeout: Int64?

    @Option(help: "When staging is full: fail, the job fails; stall, guests wait.")
    var stagingFull: StagingFullWord = .fail

    @Option(
        help: """
            What the manifest beside the copy has of its content: xxh3-128, which finds damage; sha-256, which finds \
            forgery, too. (default: xxh3-128, and nothing where the copy is a clone)
            """)
    var checksum: ChecksumWord?

    @Option(
        help: """
            Whether a new raw copy shares the blocks of a raw drive where their file system can do that (xfs, btrfs): \
            auto, a full backup without --checksum does, takes no time and no space, and has no checksums; never, all \
            is read and written.
            """)
    var clone: CloneWord = .auto

    @Option(
        help: ArgumentHelp(
            "Makes a retry harmless: the same key gives the same job for a day.", valueName: "key"))
    var requestKey: String?

    @Flag(help: "Return once the point in time is fixed.")
    var detach = false

    @Flag(help: "If it fails or is cancelled, keep what there is of a new target as TARGET.partial.")
    var keepTarget = false

    @Flag(help: "When all is copied wait for 'drive-backup job finalize'.")
    var manualFinalize = false

    @Flag(help: "Keep the job at its end until 'drive-backup job dismiss'.")
    var manualDismiss = false

    /// One backup as the agent takes it, without what is told once for a group.
    func request(
        drive: String, target: String, in surroundings: Surroundings
    ) throws(CommandFailure) -> BackupRequest {
        var request = BackupRequest()
        request.drive = drive
        request.target = try surroundings.absolute(target)
        request.sync = sync.mode
        request.format = format?.rawValue ?? ""
        request.mode = mode.mode
        request.overwrite = overwrite
        request.rebase = rebase
        request.speed = speed
        request.onSourceError = onSourceError == .report ? .unspecified : onSourceError.policy
        request.onTargetError = onTargetError == .report ? .unspecified : onTargetError.policy
        request.onCbwError = onCbwError == .breakSnapshot ? .unspecified : onCbwError.policy
        request.cbwTimeoutNs = cbwTimeout ?? 0
        request.stagingFull = stagingFull == .fail ? .unspecified : stagingFull.policy
        request.keepTarget = keepTarget
        request.checksum = checksum?.checksum ?? .unspecified
        request.clone = clone == .auto ? .unspecified : .never
        request.manualFinalize = manualFinalize
        request.manualDismiss = manualDismiss
        return request
    }
}
