import BackupAgent
import BlockIO
import DiskImages
import DriveBackupClient
import Logging
import TestKit
import Testing

@Suite("Drives")
struct DriveTests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    @Test("an added drive is there after a restart, with the format that was probed once")
    func persistence() async throws {
        try await qemuImg(["create", "-f", "qcow2", directory.file("q"), "8M"])
        try await makeRaw(directory.file("r"))
        let test = try await AgentUnderTest(drives: [], in: directory)
        let added = try await test.client.drives.add("q", file: directory.file("q"))
        #expect(added.format == "qcow2" && added.size == 8 << 20 && added.clusterSize == 65536)
        #expect(
            try await test.client.drives.add("r", file: directory.file("r"), readOnly: true).format == "raw")
        #expect(
            await status { _ = try await test.client.drives.add("r", file: directory.file("q")) }?.reason
                == "DRIVE_EXISTS")
        await test.stop()
        // What looks like another format now was raw when it was added.
        _ = try await runProcess("cp", [directory.file("q"), directory.file("r")])
        let again = try await AgentUnderTest(drives: [], in: directory)
        let drives = try await again.client.drives.list()
        #expect(drives.map(\.id) == ["q", "r"] && drives.map(\.format) == ["qcow2", "raw"])
        #expect(drives.map(\.readOnly) == [false, true] && drives.allSatisfy { $0.problem.isEmpty })
        _ = try await again.client.drives.remove("q")
        await again.stop()
        let third = try await AgentUnderTest(drives: [], in: directory)
        #expect(try await third.client.drives.list().map(\.id) == ["r"])
        await third.stop()
    }

    @Test("a drive can be removed when the requests that an export has left have ended, and not before")
    func leftBehind() async throws {
        try await makeRaw(directory.file("r"))
        let drives = DriveRegistry(
            engines: EnginePool(kind: .threads, maximum: 1), claims: FileClaims(), store: nil,
            logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
        let option = DriveOption(id: "r", file: directory.file("r"), format: .raw)
        _ = try await drives.add(option, access: .everything)
        try await drives.attach(export: "e", to: "r")
        let isLeaving = Locked(true)
        await drives.detach(export: "e", from: "r") { isLeaving.withLock { $0 } }
        // Another export comes and goes without leaving anything.
        try await drives.attach(export: "f", to: "r")
        await drives.detach(export: "f", from: "r")
        let error = await #expect(throws: AgentError.self) { try await drives.remove("r") }
        #expect(error?.reason == .driveBusy)
        isLeaving.withLock { $0 = false }
        try await drives.remove("r")
        #expect(await drives.list().isEmpty)
    }

    @Test("a stored drive whose file is gone stays listed with its problem, and the agent starts")
    func missing() async throws {
        try await makeRaw(directory.file("r"))
        let test = try await AgentUnderTest(drives: [], in: directory)
        _ = try await test.client.drives.add("r", file: directory.file("r"))
        await test.stop()
        _ = try await runProcess("rm", [directory.file("r")])
        let again = try await AgentUnderTest(drives: [], in: directory)
        #expect(try await again.client.drives.get("r").problem.contains("No such file"))
        let status = await status {
            _ = try await again.backup(BackupRequest(drive: "r", target: directory.file("t"), sync: .full))
        }
        #expect(status?.code == .failedPrecondition && status?.reason == "DRIVE_INVALID")
        _ = try await again.client.drives.remove("r")
        await again.stop()
    }

    @Test("the command line wins over a stored drive of the same id, and keeps what it gave")
    func commandLine() async throws {
        for name in ["r", "s"] { try await makeRaw(directory.file(name)) }
        let test = try await AgentUnderTest(drives: [], in: directory)
        _ = try await test.client.drives.add("vm1", file: directory.file("r"))
        await test.stop()
        let again = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: directory.file("s"))], in: directory)
        let drive = try await again.client.drives.get("vm1")
        #expect(drive.file == directory.file("s") && drive.fromCommandLine)
        #expect(await status { _ = try await again.client.drives.remove("vm1") }?.code == .failedPrecondition)
        await again.stop()
    }

    @Test("one file is not two drives if one of them may write it")
    func shared() async throws {
        try await makeRaw(directory.file("base"))
        try await qemuImg(["create", "-f", "qcow2", "-b", "base", "-F", "raw", directory.file("top")])
        _ = try await runProcess("ln", [directory.file("base"), directory.file("hard")])
        let test = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: directory.file("top"))], in: directory)
        let drives = test.client.drives
        for file in ["top", "base", "hard"] {
            #expect(
                await status { _ = try await drives.add("vm2", file: directory.file(file)) }?.reason
                    == "DRIVE_BUSY")
        }
        _ = try await drives.add("vm2", file: directory.file("hard"), readOnly: true)
        #expect(try await drives.list().count == 2)
        await test.stop()
    }

    @Test("drives and their backing files must be below the allowed directories")
    func allowed() async throws {
        _ = try await runProcess("mkdir", [directory.file("in")])
        try await makeRaw(directory.file("base"))
        try await qemuImg([
            "create", "-f", "qcow2", "-b", directory.file("base"), "-F", "raw", directory.file("in/top"),
        ])
        _ = try await runProcess("ln", ["-s", directory.file("base"), directory.file("in/link")])
        let test = try await AgentUnderTest(drives: [], allowing: [directory.file("in")], in: directory)
        for file in ["base", "in/top", "in/link", "in/../base"] {
            let status = await status {
                _ = try await test.client.drives.add("vm1", file: directory.file(file), readOnly: true)
            }
            #expect(status?.code == .permissionDenied && status?.reason == "PATH_NOT_ALLOWED", "\(file)")
        }
        #expect(
            await status { _ = try await test.client.drives.add("v", file: "base") }?.reason == "PATH_INVALID"
        )
        #expect(
            await status { _ = try await test.client.drives.add("v", file: directory.file("in/no")) }?.code
                == .notFound)
        #expect(try await test.client.drives.list().isEmpty)
        await test.stop()
    }

    @Test("a second agent on the same directory is refused")
    func secondAgent() async throws {
        let test = try await AgentUnderTest(drives: [], in: directory)
        await #expect(throws: AgentError.self) { _ = try await AgentUnderTest(drives: [], in: directory) }
        await test.stop()
        let again = try await AgentUnderTest(drives: [], in: directory)
        await again.stop()
    }

    @Test("qemu refuses to write an open drive, and a drive that qemu writes is refused")
    func locks() async throws {
        for name in ["r", "s"] { try await makeRaw(directory.file(name)) }
        let test = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: directory.file("r"), format: .raw)], in: directory)
        await #expect(throws: TestKitError.self) {
            try await qemuIO(directory.file("r"), "raw", ["write 0 64k"])
        }
        try await qemuImg(["info", directory.file("r")])
        let other = try BackgroundProcess("qemu-io", ["-f", "raw", directory.file("s")])
        try await other.send("write 0 64k")
        try await other.wait(for: "ops")
        let status = await status {
            _ = try await test.client.drives.add("vm2", file: directory.file("s"), format: "raw")
        }
        #expect(status?.reason == "FILE_LOCKED" && status?.code == .failedPrecondition)
        try await other.kill()
        await test.stop()
    }
}
