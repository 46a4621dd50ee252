import BackupAgent
import DiskImages
import DriveBackupClient
import TestKit
import Testing

/// A start that must be refused, and how.
struct Refused: Sendable, CustomTestStringConvertible {
    var what: String
    var code: RPCCode
    var reason: String
    /// Run in the directory of the targets before the start.
    var setUp = "true"
    /// Paths in the request are relative to the directory of the targets.
    var request: BackupRequest

    init(
        _ what: String, _ code: RPCCode, _ reason: String, setUp: String = "true", target: String = "t",
        sync: SyncMode = .full, _ change: (inout BackupRequest) -> Void = { _ in }
    ) {
        (self.what, self.code, self.reason, self.setUp) = (what, code, reason, setUp)
        request = BackupRequest(drive: "vm1", target: target, sync: sync)
        change(&request)
    }

    var testDescription: String { what }

    static let all = [
        Refused("an unknown drive", .notFound, "DRIVE_NOT_FOUND") { $0.drive = "vm9" },
        Refused("no drive", .invalidArgument, "FIELD_INVALID") { $0.drive = "" },
        Refused("no sync mode", .invalidArgument, "FIELD_INVALID", sync: .unspecified),
        Refused("sync none to a raw target", .failedPrecondition, "BACKING_UNSUPPORTED", sync: .none) {
            $0.format = "raw"
        },
        Refused("sync none that waits for finalize", .invalidArgument, "FIELD_INVALID", sync: .none) {
            $0.format = "qcow2"
            $0.manualFinalize = true
        },
        Refused("rebase", .unimplemented, "FIELD_UNIMPLEMENTED", sync: .none) { $0.rebase = true },
        Refused("an unknown on_cbw_error", .invalidArgument, "FIELD_INVALID") {
            $0.onCbwError = CbwErrorPolicy(rawValue: 9)
        },
        Refused("an unknown staging_full", .invalidArgument, "FIELD_INVALID") {
            $0.stagingFull = StagingFullPolicy(rawValue: 9)
        },
        Refused("a negative cbw_timeout", .invalidArgument, "FIELD_INVALID") { $0.cbwTimeoutNs = -2 },
        Refused("sync incremental", .unimplemented, "FIELD_UNIMPLEMENTED", sync: .incremental),
        Refused("an unknown sync mode", .invalidArgument, "FIELD_INVALID", sync: SyncMode(rawValue: 77)),
        Refused("an unknown mode", .invalidArgument, "FIELD_INVALID") { $0.mode = TargetMode(rawValue: 9) },
        Refused("an unknown format", .invalidArgument, "FIELD_INVALID") { $0.format = "spaghetti" },
        Refused("an unknown policy", .invalidArgument, "FIELD_INVALID") {
            $0.onSourceError = ErrorPolicy(rawValue: 6)
        },
        Refused("an unknown policy for the target", .invalidArgument, "FIELD_INVALID") {
            $0.onTargetError = ErrorPolicy(rawValue: -1)
        },
        Refused("a negative speed", .invalidArgument, "FIELD_INVALID") { $0.speed = -1 },
        Refused("a bad job id", .invalidArgument, "FIELD_INVALID") { $0.jobID = "1 x" },
        Refused("overwrite of an existing target", .invalidArgument, "FIELD_INVALID") {
            ($0.mode, $0.overwrite) = (.existing, true)
        },
        Refused("no directory", .notFound, "FILE_NOT_FOUND", target: "none/t"),
        Refused("a directory that is a file", .notFound, "FILE_NOT_FOUND", setUp: "echo > f", target: "f/t"),
        Refused("a name that ends in a slash", .invalidArgument, "PATH_INVALID", target: "t/"),
        Refused("a directory outside", .permissionDenied, "PATH_NOT_ALLOWED", target: "../t"),
        Refused(
            "a link to a directory outside", .permissionDenied, "PATH_NOT_ALLOWED", setUp: "ln -s /tmp out",
            target: "out/drive-backup-test-target"),
        Refused("a long name", .invalidArgument, "PATH_INVALID", target: String(repeating: "x", count: 250)),
        Refused("a file that exists", .alreadyExists, "TARGET_EXISTS", setUp: "echo precious > t"),
        Refused("a directory in its place", .alreadyExists, "TARGET_EXISTS", setUp: "mkdir t"),
        Refused("a link that leads nowhere", .alreadyExists, "TARGET_EXISTS", setUp: "ln -s gone t"),
        Refused("a FIFO to replace", .failedPrecondition, "TARGET_NOT_REGULAR", setUp: "mkfifo t") {
            $0.overwrite = true
        },
        Refused("a link to replace", .failedPrecondition, "TARGET_NOT_REGULAR", setUp: "echo > f; ln -s f t")
        {
            $0.overwrite = true
        },
        Refused("an orphan", .alreadyExists, "TARGET_PARTIAL_EXISTS", setUp: "echo > t.partial"),
        Refused(
            "a link in the orphan's place", .alreadyExists, "TARGET_PARTIAL_EXISTS",
            setUp: "ln -s f t.partial"
        ) {
            $0.overwrite = true
        },
        Refused(
            "the drive as target", .failedPrecondition, "TARGET_IS_SOURCE", setUp: "ln ../top.qcow2 t"
        ) {
            $0.overwrite = true
        },
        Refused("the drive by a link", .failedPrecondition, "TARGET_IS_SOURCE", setUp: "ln -s ../base.raw t")
        {
            $0.overwrite = true
        },
        Refused(
            "the drive as partial file", .failedPrecondition, "TARGET_IS_SOURCE",
            setUp: "ln ../base.raw t.partial"
        ) {
            $0.overwrite = true
        },
        Refused("the drive, existing", .failedPrecondition, "TARGET_IS_SOURCE", setUp: "ln ../top.qcow2 t") {
            $0.mode = .existing
        },
        Refused(
            "its backing file, existing", .failedPrecondition, "TARGET_IS_SOURCE", setUp: "ln ../base.raw t"
        ) {
            $0.mode = .existing
        },
        Refused("top to raw", .failedPrecondition, "BACKING_UNSUPPORTED", sync: .top) { $0.format = "raw" },
        Refused("no existing file", .notFound, "TARGET_MISSING") { $0.mode = .existing },
        Refused("no directory of an existing file", .notFound, "TARGET_MISSING", target: "none/t") {
            $0.mode = .existing
        },
        Refused("an existing directory", .failedPrecondition, "TARGET_NOT_REGULAR", setUp: "mkdir t") {
            $0.mode = .existing
        },
        Refused("an existing FIFO", .failedPrecondition, "TARGET_NOT_REGULAR", setUp: "mkfifo t") {
            $0.mode = .existing
        },
        Refused(
            "an existing file outside", .permissionDenied, "PATH_NOT_ALLOWED", setUp: "ln -s /etc/hosts t"
        ) {
            $0.mode = .existing
        },
        Refused(
            "a file that is too small", .failedPrecondition, "TARGET_SIZE_MISMATCH", setUp: "truncate -s 1M t"
        ) {
            $0.mode = .existing
        },
        Refused(
            "an image that is too large", .failedPrecondition, "TARGET_SIZE_MISMATCH",
            setUp: "qemu-img create -f qcow2 t 8389120"
        ) { $0.mode = .existing },
        Refused(
            "a corrupt image", .dataLoss, "IMAGE_CORRUPT",
            setUp:
                "qemu-img create -f qcow2 t 8M; printf '\\377\\377\\377\\377' | dd of=t bs=1 seek=20 conv=notrunc"
        ) { $0.mode = .existing },
        Refused(
            "a raw file that is no qcow2 image", .dataLoss, "IMAGE_CORRUPT", setUp: "truncate -s 8M t"
        ) { ($0.mode, $0.format) = (.existing, "qcow2") },
    ]
}

@Suite("Refused starts")
struct RefusalTests {
    @Test("a refused start changes nothing and says why", arguments: Refused.all)
    func refused(_ refused: Refused) async throws {
        let directory = try TemporaryDirectory()
        let script = """
            mkdir targets && qemu-img create -f raw base.raw 8M && \
            qemu-img create -f qcow2 -b base.raw -F raw top.qcow2 && cd targets && \(refused.setUp)
            """
        let prepared = try await runProcess("sh", ["-c", script], directory: directory.path)
        #expect(prepared.status == 0, "\(prepared.error)")
        let targets = directory.file("targets")
        let test = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: directory.file("top.qcow2"))], allowing: [targets],
            in: directory)
        var request = refused.request
        request.target = targets + "/" + request.target
        let before = try await snapshot(directory.path)
        let status = await status { _ = try await test.backup(request) }
        #expect(status?.code == refused.code, "\(status?.description ?? "it was not refused")")
        #expect(status?.reason == refused.reason)
        #expect(status?.message.contains("\n") == false && status?.message.isEmpty == false)
        // The agent's own directories may move meanwhile; nothing else may, and no file of a job is left there either.
        func others(_ text: String) -> [Substring] {
            text.split(separator: "\n").filter { !$0.contains("state") && !$0.contains("run/jobs d ") }
        }
        func files(_ text: String) -> Int { text.matches(of: #/\.(record|staging) f /#).count }
        let after = try await snapshot(directory.path)
        #expect(others(before) == others(after))
        #expect(files(after) == 0)
        #expect(try await test.client.jobs.list(all: true).isEmpty)
        #expect(try await test.client.agent.info().lastSequence == 0)
        // The agent is well: the same drive, a good target.
        let events = try await test.backup(
            BackupRequest(drive: "vm1", target: targets + "/good", sync: .full))
        #expect(events.last?.completed != nil)
        await test.stop()
    }

    @Test("a target that another process uses is refused")
    func locked() async throws {
        let directory = try TemporaryDirectory()
        try await makeRaw(directory.file("a.raw"))
        try await qemuImg(["create", "-f", "qcow2", directory.file("t"), "8M"])
        let test = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: directory.file("a.raw"))], in: directory)
        let other = try BackgroundProcess("qemu-io", ["-f", "qcow2", directory.file("t")])
        try await other.send("write 0 64k")
        try await other.wait(for: "ops")
        for mode in [TargetMode.existing, .absolutePaths] {
            let status = await status {
                _ = try await test.backup(
                    BackupRequest(
                        drive: "vm1", target: directory.file("t"), sync: .full, mode: mode,
                        overwrite: mode == .absolutePaths))
            }
            #expect(status?.code == .failedPrecondition && status?.reason == "TARGET_LOCKED")
        }
        try await other.kill()
        await test.stop()
    }

    @Test("an existing file without a stated format refuses a drive that would make it look like another one")
    func ambiguous() async throws {
        let directory = try TemporaryDirectory()
        let source = directory.file("a.raw")
        try await qemuImg(["create", "-f", "qcow2", source, "1M"])
        _ = try await runProcess("truncate", ["-s", "8M", source, directory.file("t")])
        let test = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: source, format: .raw)], in: directory)
        var request = BackupRequest(drive: "vm1", target: directory.file("t"), sync: .full, mode: .existing)
        let before = try await snapshot(directory.file(""))
        let status = await status { _ = try await test.backup(request) }
        #expect(
            status?.reason == "TARGET_FORMAT_AMBIGUOUS" && status?.message.contains("--format raw") == true)
        func target(_ text: String) -> [Substring] {
            text.split(separator: "\n").filter { $0.hasPrefix("t ") }
        }
        #expect(target(before) == target(try await snapshot(directory.file(""))))
        request.format = "raw"
        #expect(try await test.backup(request).last?.completed != nil)
        #expect(try await runProcess("cmp", [source, directory.file("t")]).status == 0)
        await test.stop()
    }
}
