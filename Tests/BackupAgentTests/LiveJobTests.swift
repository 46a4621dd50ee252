import BackupAgent
import DiskImages
import DriveBackupClient
import TestKit
import Testing

@Suite("What live jobs make and leave")
struct LiveJobTests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func agent(_ format: String = "raw", staging: StagingOption? = nil) async throws -> AgentUnderTest
    {
        try await makeRaw(directory.file("a.raw"), size: "8M")
        if format == "qcow2" {
            _ = try await qemuImg([
                "convert", "-f", "raw", "-O", "qcow2", directory.file("a.raw"), directory.file("a.qcow2"),
            ])
        }
        return try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: directory.file("a.\(format)"))], staging: staging,
            in: directory)
    }

    private func listing(_ path: String) async throws -> String {
        try await runProcess("ls", ["-A", directory.file(path)]).output
    }

    @Test("staging and record are gone when a job has ended, however it ended")
    func leavesNothing() async throws {
        let staging = StagingOption(directory: directory.file("elsewhere"), limit: 1 << 30)
        let test = try await agent(staging: staging)
        let target = directory.file("t")
        #expect(
            try await test.backup(BackupRequest(drive: "vm1", target: target, sync: .full)).last?.completed
                != nil)
        #expect(try await listing("run/jobs").isEmpty)
        #expect(try await listing("elsewhere") == "staging.lock\n")
        try await test.start(
            BackupRequest(drive: "vm1", target: target, sync: .full, overwrite: true, speed: 1))
        let running = try await test.client.jobs.get("vm1")
        #expect(running.staging != nil)
        _ = try await test.client.jobs.cancel("vm1")
        #expect(try await test.end(of: "vm1").cancelled != nil)
        #expect(try await test.client.jobs.get("vm1").staging == nil)
        #expect(try await listing("run/jobs").isEmpty)
        #expect(try await listing("elsewhere") == "staging.lock\n")
        await test.stop()
    }

    @Test("a second agent is not given the staging directory of the first")
    func stagingIsOwned() async throws {
        let staging = StagingOption(directory: directory.file("shared"))
        let test = try await agent(staging: staging)
        let other = try TemporaryDirectory()
        let error = await #expect(throws: AgentError.self) {
            _ = try await AgentUnderTest(drives: [], staging: staging, in: other)
        }
        #expect(error?.message.contains(staging.directory) == true)
        await test.stop()
    }

    @Test("what a killed agent has left is removed at the start, and only that")
    func leftovers() async throws {
        let script = """
            mkdir -p run/jobs staging && touch run/jobs/3-vm1.record staging/3-vm1.staging staging/4-a-b.staging \\
                staging/mine staging/vm1.qcow2
            """
        _ = try await runProcess("sh", ["-c", script], directory: directory.path)
        let files = JobFiles(
            recordDirectory: directory.file("run/jobs"), stagingDirectory: directory.file("staging"))
        let lines = try files.prepare()
        #expect(lines.count == 2)
        #expect(lines.first?.contains("The job vm1 ") == true && lines.last?.contains("The job a-b ") == true)
        #expect(try await listing("run/jobs").isEmpty)
        #expect(try await listing("staging") == "mine\nvm1.qcow2\n")
        #expect(try files.prepare().isEmpty)
    }

    @Test(
        "keep_target keeps what there is of a new target, under the name of an unfinished one",
        arguments: [true, false])
    func keepTarget(keeps: Bool) async throws {
        let test = try await agent("qcow2")
        let target = directory.file("t")
        // At this speed the first chunk is copied at once, and the job does not end before it is cancelled.
        var request = BackupRequest(drive: "vm1", target: target, sync: .full, speed: 1)
        request.keepTarget = keeps
        try await test.start(request)
        for try await event in try await test.client.jobs.watch("vm1") {
            if (event.progress?.current ?? 0) > 0 { break }
        }
        _ = try await test.client.jobs.cancel("vm1")
        #expect(try await test.end(of: "vm1").cancelled != nil)
        #expect(try await runProcess("test", ["-e", target]).status != 0)
        #expect((try await runProcess("test", ["-e", target + ".partial"]).status == 0) == keeps)
        if keeps { try await qemuImg(["check", target + ".partial"]) }
        await test.stop()
    }

    @Test("a refused start keeps nothing, whatever was asked for")
    func refusedKeepsNothing() async throws {
        let test = try await agent()
        var request = BackupRequest(drive: "vm1", target: directory.file("t"), sync: .none)
        request.keepTarget = true
        #expect(await status { _ = try await test.backup(request) }?.reason == "BACKING_UNSUPPORTED")
        #expect(try await listing("run/jobs").isEmpty)
        #expect(try await runProcess("test", ["-e", directory.file("t.partial")]).status != 0)
        await test.stop()
    }

    // MARK: Sync none

    @Test("a job of sync none ends well by a cancel, and its target lies on the drive's image")
    func none() async throws {
        let test = try await agent()
        let target = directory.file("t")
        try await test.start(
            BackupRequest(drive: "vm1", target: target, sync: .none, format: "qcow2", speed: 1 << 20))
        let job = try await test.client.jobs.cancel("vm1")
        #expect(job.state == .aborting || job.state == .concluded)
        let end = try await test.end(of: "vm1")
        #expect(end.completed?.result == .completed)
        #expect(try await test.client.jobs.get("vm1").result == .completed)
        await test.stop()
        let info = try await runProcess("qemu-img", ["info", "--output=json", target]).output
        #expect(info.contains("\"full-backing-filename\": \"\(directory.file("a.raw"))\""))
        #expect(info.contains("\"backing-filename-format\": \"raw\""))
        try await qemuImg(["compare", target, directory.file("a.raw")])
    }

    @Test("a job of sync none that is cancelled by force leaves nothing")
    func noneByForce() async throws {
        let test = try await agent()
        let target = directory.file("t")
        try await test.start(
            BackupRequest(drive: "vm1", target: target, sync: .none, format: "qcow2", speed: 1))
        _ = try await test.client.jobs.cancel("vm1", force: true)
        #expect(try await test.end(of: "vm1").cancelled != nil)
        try await eventually { try await runProcess("sh", ["-c", "ls \(target)*"]).status != 0 }
        await test.stop()
    }

    @Test("an existing target of sync none must lie on the drive's image, under whatever name")
    func noneExisting() async throws {
        let test = try await agent()
        _ = try await runProcess(
            "sh", ["-c", "ln a.raw hard; truncate -s 8M other; mkdir sub"], directory: directory.path)
        let cases = [
            ("-b other -F raw", "BACKING_MISMATCH"), ("", "BACKING_MISMATCH"),
            ("-b \(directory.file("a.raw")) -F raw", ""), ("-b hard -F raw", ""),
            ("-b sub/../a.raw -F raw", ""),
        ]
        for (number, (backing, reason)) in cases.enumerated() {
            let target = directory.file("t\(number)")
            // The drive is open: qemu-img is not to look at it.
            let script = "qemu-img create -q -u -f qcow2 \(backing) t\(number) 8M"
            let made = try await runProcess("sh", ["-c", script], directory: directory.path)
            #expect(made.status == 0, "\(made.error)")
            var request = BackupRequest(
                drive: "vm1", target: target, sync: .none, mode: .existing, speed: 1 << 20)
            request.detach = true
            let before = try await snapshot(directory.path).split(separator: "\n").filter {
                $0.hasPrefix("t\(number)")
            }
            let refusal = await status { _ = try await test.backup(request) }
            #expect(refusal?.reason ?? "" == reason, "\(backing): \(String(describing: refusal))")
            if refusal == nil {
                _ = try await test.client.jobs.cancel("vm1")
                #expect(try await test.end(of: "vm1").completed != nil)
            } else {
                let after = try await snapshot(directory.path).split(separator: "\n").filter {
                    $0.hasPrefix("t\(number)")
                }
                #expect(before == after, "a refusal changes nothing")
            }
        }
        _ = try await runProcess("truncate", ["-s", "8M", directory.file("plain")])
        let raw = await status {
            _ = try await test.backup(
                BackupRequest(
                    drive: "vm1", target: directory.file("plain"), sync: .none, format: "raw", mode: .existing
                ))
        }
        #expect(raw?.reason == "BACKING_UNSUPPORTED")
        await test.stop()
    }
}
