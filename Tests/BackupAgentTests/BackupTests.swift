import BackupAgent
import DiskImages
import DriveBackupClient
import TestKit
import Testing

@Suite("Backups through the agent")
struct BackupTests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    /// A raw base, an overlay on it and one on that, with other cluster sizes.
    private func chain() async throws -> String {
        let (base, middle, top) = (
            directory.file("base.raw"), directory.file("middle.qcow2"), directory.file("top.qcow2")
        )
        try await makeRaw(base)
        try await qemuImg([
            "create", "-f", "qcow2", "-o", "cluster_size=4k", "-b", base, "-F", "raw", middle,
        ])
        try await qemuIO(middle, "qcow2", ["write -P 1 2M 200k", "write -P 2 7M 4k"])
        try await qemuImg(["create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top])
        try await qemuIO(top, "qcow2", ["write -P 3 3M 70000", "write -z 1M 64k"])
        return top
    }

    @Test("full and top are equal to the drive, in raw and qcow2, and clean", arguments: ["raw", "qcow2"])
    func content(format: String) async throws {
        let drive = try await chain()
        let test = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: drive, format: .qcow2)], in: directory)
        for sync in [SyncMode.full, .top] where !(sync == .top && format == "raw") {
            let target = directory.file("\(sync)-target.\(format)")
            let events = try await test.backup(
                BackupRequest(drive: "vm1", target: target, sync: sync, format: format))
            #expect(events.first?.started?.sync == sync)
            let end = try #require(events.last?.completed)
            #expect(end.result == .completed && end.progress?.current == end.progress?.total)
            try await qemuImg(["compare", drive, target])
            if format == "qcow2" { try await qemuImg(["check", target]) }
        }
        if format == "qcow2" {
            let info = try await qemuImg(["info", directory.file("top-target.qcow2")]).output
            #expect(info.contains("backing file: \(directory.file("middle.qcow2"))"))
            #expect(info.contains("backing file format: qcow2"))
        }
        await test.stop()
    }

    @Test("top of a drive without a backing file is full")
    func topWithoutBacking() async throws {
        try await makeRaw(directory.file("a.raw"))
        let test = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: directory.file("a.raw"), format: .raw)], in: directory)
        let events = try await test.backup(
            BackupRequest(drive: "vm1", target: directory.file("t.qcow2"), sync: .top, format: "qcow2"))
        #expect(events.first?.started?.sync == .full)
        try await qemuImg(["compare", directory.file("a.raw"), directory.file("t.qcow2")])
        await test.stop()
    }

    @Test("a size that is no multiple of anything is kept", arguments: [0, 1, 511, 513, 1000, 3_147_264])
    func oddSizes(size: Int) async throws {
        let (source, target) = (directory.file("a.raw"), directory.file("t.raw"))
        let script = "head -c \(size) /dev/urandom > \(source)"
        _ = try await runProcess("sh", ["-c", script])
        let test = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: source, format: .raw)], in: directory)
        _ = try await test.backup(BackupRequest(drive: "vm1", target: target, sync: .full))
        #expect(try await runProcess("cmp", [source, target]).status == 0)
        let qcow2 = directory.file("t.qcow2")
        _ = try await test.backup(
            BackupRequest(drive: "vm1", target: qcow2, sync: .full, format: "qcow2"))
        try await qemuImg(["compare", "-f", "raw", source, qcow2])
        // Nothing of the drive's end is in this one.
        let layer = directory.file("n.qcow2")
        try await test.start(BackupRequest(drive: "vm1", target: layer, sync: .none, format: "qcow2"))
        _ = try await test.client.jobs.cancel("vm1")
        #expect(try await test.end(of: "vm1").completed != nil)
        try await qemuImg(["compare", "-f", "raw", source, layer])
        await test.stop()
    }

    @Test(
        "an existing target gets the drive's content and nothing of its own remains",
        arguments: ["raw", "qcow2"])
    func existing(format: String) async throws {
        let drive = try await chain()
        let target = directory.file("t")
        try await qemuImg(["create", "-f", format, target, "8M"])
        try await qemuIO(target, format, ["write -P 9 0 8M"])
        let test = try await AgentUnderTest(drives: [DriveOption(id: "vm1", file: drive)], in: directory)
        let events = try await test.backup(
            BackupRequest(drive: "vm1", target: target, sync: .full, mode: .existing))
        #expect(events.first?.started?.format == format)
        try await qemuImg(["compare", drive, target])
        await test.stop()
    }

    @Test("with overwrite the old file stays until the new one is whole")
    func overwrite() async throws {
        let (source, target) = (directory.file("a.raw"), directory.file("t.raw"))
        try await makeRaw(source)
        try await makeRaw(target, size: "6M", pattern: 1)
        try await makeRaw(target + ".partial", size: "7M", pattern: 2)
        let test = try await AgentUnderTest(drives: [DriveOption(id: "vm1", file: source)], in: directory)
        let before = try await runProcess("sha256sum", [target]).output
        try await test.start(
            BackupRequest(
                drive: "vm1", target: target, sync: .full, overwrite: true, manualFinalize: true))
        try await test.wait(for: .pending, of: "vm1")
        #expect(try await runProcess("sha256sum", [target]).output == before)
        _ = try await test.client.jobs.finalize("vm1")
        #expect(try await test.end(of: "vm1").completed != nil)
        try await qemuImg(["compare", "-f", "raw", "-F", "raw", source, target])
        #expect(try await snapshot(directory.path).contains(".partial") == false)
        await test.stop()
    }

    @Test("a file that appears under the target's name while the job runs is left alone and fails the job")
    func appearing() async throws {
        let (source, target) = (directory.file("a.raw"), directory.file("t.raw"))
        try await makeRaw(source)
        let test = try await AgentUnderTest(drives: [DriveOption(id: "vm1", file: source)], in: directory)
        try await test.start(
            BackupRequest(drive: "vm1", target: target, sync: .full, manualFinalize: true))
        try await test.wait(for: .pending, of: "vm1")
        _ = try await runProcess("sh", ["-c", "echo precious > \(target)"])
        _ = try await test.client.jobs.finalize("vm1")
        let end = try await test.end(of: "vm1")
        #expect(end.failed?.error?.reason == "TARGET_EXISTS")
        #expect(try await runProcess("cat", [target]).output == "precious\n")
        #expect(try await snapshot(directory.path).contains(".partial") == false)
        let job = try await test.client.jobs.get("vm1")
        #expect(job.result == .failed && job.error?.code == .alreadyExists)
        await test.stop()
    }

    @Test("a partial file that somebody replaced is not taken for ours")
    func replacedPartial() async throws {
        let (source, target) = (directory.file("a.raw"), directory.file("t.raw"))
        try await makeRaw(source)
        let test = try await AgentUnderTest(drives: [DriveOption(id: "vm1", file: source)], in: directory)
        try await test.start(
            BackupRequest(drive: "vm1", target: target, sync: .full, manualFinalize: true))
        try await test.wait(for: .pending, of: "vm1")
        _ = try await runProcess("sh", ["-c", "rm \(target).partial; echo mine > \(target).partial"])
        _ = try await test.client.jobs.finalize("vm1")
        #expect(try await test.end(of: "vm1").failed != nil)
        #expect(try await runProcess("cat", [target + ".partial"]).output == "mine\n")
        #expect(try await snapshot(directory.path).contains("t.raw ") == false)
        await test.stop()
    }
}
