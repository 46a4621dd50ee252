import BackupAgent
import DiskImages
import DriveBackupClient
import TestKit
import Testing

@Suite("Groups of backups")
struct GroupTests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func agent() async throws -> AgentUnderTest {
        for name in ["a", "b", "c"]
        where try await runProcess("test", ["-e", directory.file(name)]).status != 0 {
            try await makeRaw(directory.file(name), size: "6M")
        }
        _ = try await runProcess("mkdir", ["-p", directory.file("out")])
        return try await AgentUnderTest(
            drives: ["a", "b", "c"].map { DriveOption(id: $0, file: directory.file($0), format: .raw) },
            in: directory)
    }

    private func group(
        _ drives: String..., change: (inout StartGroupRequest) -> Void = { _ in }
    ) -> StartGroupRequest {
        var request = StartGroupRequest()
        request.backups = drives.map {
            BackupRequest(drive: $0, target: directory.file("out/\($0)"), sync: .full)
        }
        change(&request)
        return request
    }

    private func run(_ request: StartGroupRequest, _ test: AgentUnderTest) async throws -> [WireEvent] {
        var events: [WireEvent] = []
        for try await event in try await test.client.backups.startGroup(request) { events.append(event) }
        return events
    }

    @Test("all start at the same point in time, and the stream has all their events until the last end")
    func together() async throws {
        let test = try await agent()
        let events = try await run(group("a", "b", "c"), test)
        let started = events.prefix(3).compactMap(\.started)
        #expect(events.prefix(3).map(\.jobID) == ["a", "b", "c"] && started.count == 3)
        #expect(Set(started.map(\.pointInTime)).count == 1)
        #expect(events.map(\.sequence) == events.map(\.sequence).sorted(), "in the order of their numbers")
        #expect(Set(events.map(\.sequence)).count == events.count, "each once")
        #expect(Set(events.filter { $0.completed != nil }.map(\.jobID)) == ["a", "b", "c"])
        for name in ["a", "b", "c"] {
            #expect(
                try await runProcess("cmp", [directory.file(name), directory.file("out/\(name)")]).status == 0
            )
            let last = events.last { $0.jobID == name }
            let watched = try await test.end(of: name)
            #expect(last == watched, "a job's last event is its own")
        }
        await test.stop()
    }

    @Test(
        "if one cannot start none does, and no file and no job is left",
        arguments: [0, 1, 2])
    func allOrNothing(bad: Int) async throws {
        let test = try await agent()
        let names = ["a", "b", "c"]
        _ = try await runProcess("sh", ["-c", "echo there > out/\(names[bad])"], directory: directory.path)
        let before = try await snapshot(directory.file("out"))
        let refusal = await status { _ = try await run(group("a", "b", "c"), test) }
        #expect(refusal?.reason == "TARGET_EXISTS")
        func files(_ text: String) -> [Substring] { text.split(separator: "\n") }
        #expect(
            files(before) == files(try await snapshot(directory.file("out"))), "none was made for a moment")
        #expect(try await test.client.jobs.list(all: true).isEmpty)
        #expect(try await test.client.agent.info().lastSequence == 0)
        #expect(try await snapshot(directory.file("run/jobs")).isEmpty)
        #expect(try await test.client.drives.list().allSatisfy { $0.jobID.isEmpty })
        // They can start without it.
        _ = try await runProcess("rm", [directory.file("out/\(names[bad])")])
        #expect(try await run(group("a", "b", "c"), test).filter { $0.completed != nil }.count == 3)
        await test.stop()
    }

    @Test("a busy drive of a group refuses all of it")
    func busy() async throws {
        let test = try await agent()
        try await test.start(
            BackupRequest(drive: "b", target: directory.file("t"), sync: .full, speed: 1, jobID: "other"))
        let refusal = await status { _ = try await run(group("a", "b"), test) }
        #expect(refusal?.reason == "DRIVE_BUSY" && refusal?.message.contains("other") == true)
        #expect(try await snapshot(directory.file("out")).isEmpty)
        #expect(try await test.client.jobs.list().map(\.id) == ["other"])
        _ = try await test.client.jobs.cancel("other")
        await test.stop()
    }

    @Test("a group that makes no sense is refused")
    func refusals() async throws {
        let test = try await agent()
        let cases: [(StartGroupRequest, RPCCode, String)] = [
            (group(), .invalidArgument, "FIELD_INVALID"),
            (group("a", "a"), .invalidArgument, "FIELD_INVALID"),
            (
                group("a", "b") { $0.backups[1].target = $0.backups[0].target }, .invalidArgument,
                "FIELD_INVALID"
            ),
            (group("a", "b") { $0.backups[1].jobID = "a" }, .invalidArgument, "FIELD_INVALID"),
            (group("a", "b") { $0.backups[1].detach = true }, .invalidArgument, "FIELD_INVALID"),
            (group("a", "b") { $0.backups[0].requestKey = "k" }, .invalidArgument, "FIELD_INVALID"),
            (group("a", "b") { $0.backups[1].sync = .unspecified }, .invalidArgument, "FIELD_INVALID"),
            (group("a", "x"), .notFound, "DRIVE_NOT_FOUND"),
            (
                group("a", "b") {
                    $0.completion = .grouped
                    $0.backups[1].sync = .none
                }, .invalidArgument, "FIELD_INVALID"
            ),
            (
                group("a") { $0.completion = GroupCompletion(rawValue: 9) }, .invalidArgument,
                "FIELD_INVALID"
            ),
        ]
        for (request, code, reason) in cases {
            let refusal = await status { _ = try await run(request, test) }
            #expect(refusal?.code == code && refusal?.reason == reason, "\(request)")
        }
        #expect(try await snapshot(directory.file("out")).isEmpty)
        #expect(try await test.client.jobs.list(all: true).isEmpty)
        await test.stop()
    }

    @Test("a group that completes together does, when one of its jobs is finalized")
    func completesTogether() async throws {
        let test = try await agent()
        let request = group("a", "b") { request in
            request.completion = .grouped
            request.detach = true
            request.backups[0].speed = 1
            request.backups[1].manualFinalize = true
            for index in request.backups.indices { request.backups[index].manualDismiss = true }
        }
        _ = try await run(request, test)
        try await test.wait(for: .waiting, of: "b")
        #expect(await status { _ = try await test.client.jobs.finalize("b") }?.reason == "JOB_STATE")
        _ = try await test.client.jobs.setSpeed("a", bytesPerSecond: 0)
        try await test.wait(for: .pending, of: "a")
        try await test.wait(for: .pending, of: "b")
        for id in ["a", "b"] {
            let job = try await test.client.jobs.get(id)
            #expect(job.grouped && !job.group.isEmpty && job.state == .pending)
        }
        // Of any, not only of the one that waits for it.
        _ = try await test.client.jobs.finalize("a")
        #expect(try await test.end(of: "a").completed != nil)
        #expect(try await test.end(of: "b").completed != nil)
        await test.stop()
    }

    @Test("of a group that completes together all are cancelled with one", arguments: [false, true])
    func cancelledTogether(isPending: Bool) async throws {
        let test = try await agent()
        let request = group("a", "b") { request in
            request.completion = .grouped
            request.detach = true
            if !isPending { request.backups[0].speed = 1 }
            for index in request.backups.indices {
                request.backups[index].manualFinalize = true
                request.backups[index].manualDismiss = true
            }
        }
        _ = try await run(request, test)
        try await test.wait(for: isPending ? .pending : .waiting, of: "b")
        _ = try await test.client.jobs.cancel("a")
        for id in ["a", "b"] { #expect(try await test.end(of: id).cancelled != nil) }
        try await eventually { try await snapshot(directory.file("out")).isEmpty }
        await test.stop()
    }

    @Test("the jobs of a group live on their own: one is cancelled, the other completes")
    func apart() async throws {
        let test = try await agent()
        var request = group("a", "b") { $0.detach = true }
        request.backups[0].speed = 1
        request.requestKey = "k"
        let started = try await run(request, test)
        #expect(started.count == 2 && started.allSatisfy { $0.started != nil })
        // The same request again: the same jobs.
        #expect(try await run(request, test) == started)
        var other = request
        other.backups.removeLast()
        #expect(await status { _ = try await run(other, test) }?.reason == "REQUEST_KEY_REUSED")
        _ = try await test.client.jobs.cancel("a")
        #expect(try await test.end(of: "a").cancelled != nil)
        #expect(try await test.end(of: "b").completed != nil)
        #expect(try await run(request, test) == started, "ended jobs, too")
        await test.stop()
    }
}
