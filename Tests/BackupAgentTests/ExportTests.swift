import BackupAgent
import DiskImages
import DriveBackupClient
import TestKit
import Testing

@Suite("Exports")
struct ExportTests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func socket(_ name: String) -> String { "unix:" + directory.file(name) }

    private func agent(
        _ drives: [String] = ["a", "b"], exports: [ExportOption] = [], allowing: [String] = []
    ) async throws -> AgentUnderTest {
        for drive in drives where try await runProcess("test", ["-e", directory.file(drive)]).status != 0 {
            try await makeRaw(directory.file(drive), size: "6M")
        }
        return try await AgentUnderTest(
            drives: drives.map { DriveOption(id: $0, file: directory.file($0), format: .raw) },
            exports: exports, allowing: allowing, in: directory)
    }

    @Test("an export has its drive's name unless it is given one, and is there after a restart")
    func persistence() async throws {
        let test = try await agent()
        let exports = test.client.exports
        let first = try await exports.add(drive: "a", address: socket("a.sock"))
        #expect(first.name == "a" && first.drive == "a" && first.address == socket("a.sock"))
        #expect(!first.readOnly && first.clients == 0 && !first.fromCommandLine && first.snapshotOf.isEmpty)
        let second = try await exports.add(
            drive: "a", address: "unix://" + directory.file("a.sock"), name: "again", readOnly: true)
        #expect(second.readOnly && second.address == socket("a.sock"))
        #expect(try await exports.list().map(\.name) == ["a", "again"])
        #expect(try await test.client.drives.get("a").exports == ["a", "again"])
        #expect(try await test.client.drives.get("b").exports.isEmpty)
        await test.stop()
        let next = try await agent()
        let listed = try await next.client.exports.list()
        #expect(listed.map(\.name) == ["a", "again"] && listed.map(\.readOnly) == [false, true])
        #expect(listed.allSatisfy { $0.problem.isEmpty && $0.address == socket("a.sock") })
        try await next.client.exports.remove("a")
        #expect(
            await status { try await next.client.exports.remove("a") }?.reason == "EXPORT_NOT_FOUND")
        await next.stop()
        let third = try await agent()
        #expect(try await third.client.exports.list().map(\.name) == ["again"])
        await third.stop()
    }

    @Test("a drive with an export is not removed, and the refusal names the export")
    func busyDrive() async throws {
        let test = try await agent([])
        try await makeRaw(directory.file("r"))
        _ = try await test.client.drives.add("r", file: directory.file("r"), format: "raw")
        _ = try await test.client.exports.add(drive: "r", address: socket("r.sock"), name: "disk")
        let refusal = await status { try await test.client.drives.remove("r") }
        #expect(refusal?.reason == "DRIVE_BUSY" && refusal?.message.contains("disk") == true)
        // A job may use the drive all the same.
        let events = try await test.backup(
            BackupRequest(drive: "r", target: directory.file("t"), sync: .full))
        #expect(events.last?.completed != nil)
        try await test.client.exports.remove("disk")
        try await test.client.drives.remove("r")
        await test.stop()
    }

    @Test("an export that makes no sense is refused and leaves nothing")
    func refusals() async throws {
        let test = try await agent()
        let exports = test.client.exports
        _ = try await exports.add(drive: "a", address: socket("a.sock"))
        let cases: [(String, RPCCode, String, () async throws -> Void)] = [
            (
                "no drive", .notFound, "DRIVE_NOT_FOUND",
                { _ = try await exports.add(drive: "c", address: self.socket("c.sock")) }
            ),
            (
                "a name that is taken", .alreadyExists, "EXPORT_EXISTS",
                { _ = try await exports.add(drive: "b", address: self.socket("b.sock"), name: "a") }
            ),
            (
                "TLS", .unimplemented, "FIELD_UNIMPLEMENTED",
                { _ = try await exports.add(drive: "b", address: "tls://127.0.0.1:0") }
            ),
            (
                "no address", .invalidArgument, "FIELD_INVALID",
                { _ = try await exports.add(drive: "b", address: "") }
            ),
            (
                "no kind of address", .invalidArgument, "FIELD_INVALID",
                { _ = try await exports.add(drive: "b", address: "/b.sock") }
            ),
            (
                "a relative path", .invalidArgument, "PATH_INVALID",
                { _ = try await exports.add(drive: "b", address: "unix:b.sock") }
            ),
            (
                "a directory that is not there", .notFound, "FILE_NOT_FOUND",
                { _ = try await exports.add(drive: "b", address: self.socket("no/b.sock")) }
            ),
            (
                "an address that is not this machine's", .invalidArgument, "FIELD_INVALID",
                { _ = try await exports.add(drive: "b", address: "tcp://192.0.2.1:10809") }
            ),
            (
                "every address", .invalidArgument, "FIELD_INVALID",
                { _ = try await exports.add(drive: "b", address: "tcp://0.0.0.0:10809") }
            ),
            (
                "a name with a line break", .invalidArgument, "FIELD_INVALID",
                { _ = try await exports.add(drive: "b", address: self.socket("b.sock"), name: "b\nc") }
            ),
            (
                "a name that is too long", .invalidArgument, "FIELD_INVALID",
                {
                    _ = try await exports.add(
                        drive: "b", address: self.socket("b.sock"), name: String(repeating: "n", count: 256))
                }
            ),
            (
                "the point in time of no job", .notFound, "JOB_NOT_FOUND",
                { _ = try await exports.addSnapshot(of: "j", address: self.socket("j.sock")) }
            ),
        ]
        for (what, code, reason, body) in cases {
            let refusal = await status(body)
            #expect(
                refusal?.code == code && refusal?.reason == reason, "\(what): \(String(describing: refusal))")
        }
        #expect(try await exports.list().map(\.name) == ["a"])
        #expect(try await test.client.drives.get("b").exports.isEmpty)
        await test.stop()
    }

    @Test("a socket is made only below the allowed directories, links followed")
    func allowedDirectories() async throws {
        _ = try await runProcess("mkdir", [directory.file("in")])
        _ = try await runProcess("ln", ["-s", directory.path, directory.file("in/out")])
        let test = try await agent(allowing: [directory.file("in")])
        for path in ["a.sock", "in/../a.sock", "in/out/a.sock"] {
            let refusal = await status {
                _ = try await test.client.exports.add(drive: "a", address: socket(path))
            }
            #expect(refusal?.code == .permissionDenied && refusal?.reason == "PATH_NOT_ALLOWED", "\(path)")
        }
        _ = try await test.client.exports.add(drive: "a", address: socket("in/a.sock"))
        await test.stop()
    }

    @Test("a read-only drive is exported read-only; a writable export is told to other processes")
    func writePermission() async throws {
        // Whoever reads a qcow2 image wants nobody to write meanwhile.
        for name in ["p", "q", "r"] {
            try await qemuImg(["create", "-f", "qcow2", directory.file(name), "1M"])
        }
        let test = try await AgentUnderTest(
            drives: ["p", "q"].map { DriveOption(id: $0, file: directory.file($0), format: .qcow2) },
            in: directory)
        let exports = test.client.exports
        _ = try await test.client.drives.add("r", file: directory.file("r"), readOnly: true)
        #expect(try await exports.add(drive: "r", address: socket("r.sock")).readOnly)
        #expect(try await !exports.add(drive: "p", address: socket("p.sock"), name: "first").readOnly)
        _ = try await exports.add(drive: "q", address: socket("q.sock"), readOnly: true)
        func reads(_ name: String) async throws -> Bool {
            try await runProcess("qemu-io", ["-r", "-f", "qcow2", directory.file(name), "-c", "read 0 512"])
                .status == 0
        }
        #expect(try await !reads("p"), "a guest may write")
        for name in ["q", "r"] { #expect(try await reads(name), "nobody writes") }
        let other = try BackgroundProcess("qemu-io", ["-r", "-f", "qcow2", directory.file("q")])
        try await other.send("read 0 512")
        try await other.wait(for: "ops")
        let refusal = await status {
            _ = try await exports.add(drive: "q", address: socket("q.sock"), name: "writable")
        }
        #expect(refusal?.reason == "FILE_LOCKED" && refusal?.code == .failedPrecondition)
        #expect(try await test.client.drives.get("q").exports == ["q"])
        #expect(try await exports.list().map(\.name) == ["first", "q", "r"])
        try await other.kill()
        _ = try await exports.add(drive: "q", address: socket("q.sock"), name: "writable")
        await test.stop()
    }

    @Test("an export of the command line wins over a stored one of its name, and cannot be removed")
    func commandLine() async throws {
        let test = try await agent()
        _ = try await test.client.exports.add(drive: "a", address: socket("a.sock"), name: "disk")
        await test.stop()
        let option = ExportOption(drive: "b", address: socket("b.sock"), name: "disk", isWritable: false)
        let next = try await agent(exports: [option])
        let export = try #require(try await next.client.exports.list().first)
        #expect(export.name == "disk" && export.drive == "b" && export.fromCommandLine && export.readOnly)
        let refusal = await status { try await next.client.exports.remove("disk") }
        #expect(refusal?.reason == "EXPORT_INVALID")
        await next.stop()
        // Without it the stored one is back.
        let third = try await agent()
        #expect(try await third.client.exports.list().map(\.drive) == ["a"])
        await third.stop()
    }

    @Test(
        "an export of the command line that cannot be served ends the start with a sentence",
        arguments: [
            ExportOption(drive: "c", address: "unix:/tmp/c.sock"),
            ExportOption(drive: "a", address: "unix:/nonexistent/a.sock"),
            ExportOption(drive: "a", address: "tcp://192.0.2.1:1"),
        ])
    func badCommandLine(option: ExportOption) async throws {
        let error = await #expect(throws: AgentError.self) { _ = try await agent(exports: [option]) }
        #expect(error?.message.hasPrefix("Export \(option.name): ") == true)
        // What was begun is undone: another agent can have the directories.
        let test = try await agent()
        await test.stop()
    }

    @Test("a writable export of a read-only drive is refused when it is asked for by name")
    func writableOfReadOnly() async throws {
        try await makeRaw(directory.file("r"), size: "6M")
        let drives = [DriveOption(id: "r", file: directory.file("r"), format: .raw, isReadOnly: true)]
        func option(_ isWritable: Bool?) -> ExportOption {
            ExportOption(drive: "r", address: socket("r.sock"), isWritable: isWritable)
        }
        let error = await #expect(throws: AgentError.self) {
            _ = try await AgentUnderTest(drives: drives, exports: [option(true)], in: directory)
        }
        #expect(error?.reason == .exportInvalid)
        let test = try await AgentUnderTest(drives: drives, exports: [option(nil)], in: directory)
        #expect(try await test.client.exports.list().map(\.readOnly) == [true])
        await test.stop()
    }

    @Test("a stored export whose drive is gone stays listed with its problem, and can be removed")
    func missingDrive() async throws {
        try await makeRaw(directory.file("r"))
        let test = try await agent()
        _ = try await test.client.drives.add("r", file: directory.file("r"), format: "raw")
        _ = try await test.client.exports.add(drive: "r", address: socket("r.sock"))
        _ = try await test.client.exports.add(drive: "b", address: socket("b.sock"))
        await test.stop()
        _ = try await runProcess("rm", [directory.file("r")])
        // The drive r cannot be opened, and b is not given any more.
        let next = try await agent(["a"])
        let exports = try await next.client.exports.list()
        #expect(exports.map(\.name) == ["b", "r"])
        #expect(exports.first?.problem.contains("no drive 'b'") == true)
        #expect(exports.last?.problem.contains("No such file") == true)
        #expect(await status { try await next.client.drives.remove("r") }?.reason == "DRIVE_BUSY")
        try await next.client.exports.remove("r")
        try await next.client.exports.remove("b")
        try await next.client.drives.remove("r")
        await next.stop()
        let third = try await agent(["a"])
        #expect(try await third.client.exports.list().isEmpty)
        await third.stop()
    }

    @Test("the point in time of a running job is exported read-only, until the job ends, and is not kept")
    func snapshot() async throws {
        let test = try await agent()
        let exports = test.client.exports
        _ = try await exports.add(drive: "a", address: socket("a.sock"))
        try await test.start(
            BackupRequest(
                drive: "a", target: directory.file("t"), sync: .full, speed: 1, jobID: "j"))
        let export = try await exports.addSnapshot(of: "j", address: socket("j.sock"))
        #expect(
            export.name == "j-snapshot" && export.drive == "a" && export.snapshotOf == "j" && export.readOnly)
        _ = try await exports.addSnapshot(of: "j", address: socket("j.sock"), name: "then")
        #expect(try await test.client.drives.get("a").exports == ["a", "j-snapshot", "then"])
        let wrong = await status {
            var request = AddExportRequest()
            request.snapshotOf = "j"
            request.drive = "b"
            request.address = socket("k.sock")
            _ = try await test.connection.call(ExportsMethods.add, request)
        }
        #expect(wrong?.reason == "FIELD_INVALID")
        try await exports.remove("then")
        _ = try await test.client.jobs.cancel("j")
        #expect(try await test.end(of: "j").cancelled != nil)
        #expect(try await exports.list().map(\.name) == ["a"])
        let late = await status { _ = try await exports.addSnapshot(of: "j", address: socket("j.sock")) }
        #expect(late?.reason == "JOB_STATE" && late?.code == .failedPrecondition)
        await test.stop()
        let next = try await agent()
        #expect(try await next.client.exports.list().map(\.name) == ["a"])
        await next.stop()
    }

    @Test("many that add and remove exports at once leave what the last answers said")
    func race() async throws {
        let test = try await agent()
        let exports = test.client.exports
        let added = try await withThrowingTaskGroup(of: String?.self) { group in
            for number in 0..<40 {
                group.addTask {
                    // Five addresses, eight names: most are taken.
                    let name = "n\(number % 8)"
                    let refusal = await status {
                        _ = try await exports.add(
                            drive: number.isMultiple(of: 2) ? "a" : "b",
                            address: self.socket("s\(number % 5)"),
                            name: name)
                    }
                    guard refusal == nil || refusal?.reason == "EXPORT_EXISTS" else {
                        throw TestKitError("\(String(describing: refusal))")
                    }
                    return refusal == nil ? name : nil
                }
            }
            return try await group.reduce(into: [String]()) { names, name in name.map { names.append($0) } }
        }
        #expect(added.sorted() == (0..<8).map { "n\($0)" })
        try await withThrowingTaskGroup(of: Void.self) { group in
            for name in added { group.addTask { try await exports.remove(name) } }
            try await group.waitForAll()
        }
        #expect(try await exports.list().isEmpty)
        #expect(try await test.client.drives.list().allSatisfy { $0.exports.isEmpty })
        await test.stop()
    }
}
