import BackupAgent
import DiskImages
import DriveBackupClient
import TestKit
import Testing

@Suite("Jobs through the agent")
struct JobTests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func agent() async throws -> AgentUnderTest {
        for name in ["a", "b"] { try await makeRaw(directory.file(name + ".raw")) }
        return try await again()
    }

    private func again() async throws -> AgentUnderTest {
        try await AgentUnderTest(
            drives: ["a", "b"].map {
                DriveOption(id: "vm-" + $0, file: directory.file($0 + ".raw"), format: .raw)
            },
            in: directory)
    }

    private func request(_ drive: String = "vm-a", _ change: (inout BackupRequest) -> Void = { _ in })
        -> BackupRequest
    {
        var request = BackupRequest(drive: drive, target: directory.file("t.raw"), sync: .full)
        change(&request)
        return request
    }

    @Test("the events of a plain job are those of the table, once each and in order")
    func plainEvents() async throws {
        let test = try await agent()
        _ = try await test.backup(request())
        var events: [WireEvent] = []
        for try await event in try await test.client.jobs.watch("vm-a") where event.progress == nil {
            events.append(event)
        }
        #expect(
            events.compactMap(\.stateChanged?.state) == [.created, .running, .waiting, .pending, .concluded])
        #expect(events.filter { $0.completed != nil }.count == 1 && events.last?.completed != nil)
        #expect(events[1].started?.drive == "vm-a")
        var all: [WireEvent] = []
        for try await event in try await test.client.agent.events(follow: false) { all.append(event) }
        #expect(all.filter { $0.progress == nil } == events)
        // From the middle: the rest, and nothing twice.
        var rest: [WireEvent] = []
        for try await event in try await test.client.jobs.watch("vm-a", after: events[2].sequence) {
            rest.append(event)
        }
        #expect(rest.filter { $0.progress == nil } == Array(events[3...]))
        rest = []
        for try await event in try await test.client.jobs.watch("vm-a", after: events[6].sequence) {
            rest.append(event)
        }
        #expect(rest.isEmpty)
        await test.stop()
    }

    @Test("a job without auto-dismiss stays, keeps its id, and takes nothing but dismiss")
    func manualDismiss() async throws {
        let test = try await agent()
        _ = try await test.backup(request { $0.manualDismiss = true })
        let jobs = test.client.jobs
        #expect(try await jobs.list().map(\.state) == [.concluded])
        for verb in [jobs.pause, jobs.resume, jobs.finalize] {
            #expect(await status { _ = try await verb("vm-a") }?.reason == "JOB_STATE")
        }
        #expect(await status { _ = try await jobs.cancel("vm-a") }?.reason == "JOB_STATE")
        #expect(
            await status { _ = try await jobs.setSpeed("vm-a", bytesPerSecond: 1) }?.reason == "JOB_STATE")
        let again = request { $0.target = directory.file("u.raw") }
        #expect(await status { _ = try await test.backup(again) }?.reason == "JOB_EXISTS")
        _ = try await jobs.dismiss("vm-a")
        #expect(try await jobs.list().isEmpty)
        #expect(try await jobs.get("vm-a").result == .completed)
        #expect(try await test.backup(again).last?.completed != nil)
        #expect(try await jobs.list(all: true).count == 2)
        await test.stop()
    }

    @Test("a pending job can be cancelled, and then nothing of its target remains")
    func cancelPending() async throws {
        let test = try await agent()
        try await test.start(request { $0.manualFinalize = true })
        try await test.wait(for: .pending, of: "vm-a")
        let jobs = test.client.jobs
        for verb in [jobs.pause, jobs.dismiss] {
            let status = await status { _ = try await verb("vm-a") }
            #expect(status?.reason == "JOB_STATE" && status?.code == .failedPrecondition)
            #expect(status?.message.contains("vm-a") == true && status?.message.contains("pending") == true)
        }
        _ = try await jobs.cancel("vm-a")
        let end = try await test.end(of: "vm-a")
        #expect(end.cancelled?.progress?.current == 8 << 20)
        #expect(try await jobs.get("vm-a").result == .cancelled)
        try await eventually { try await !snapshot(directory.path).contains("t.raw") }
        await test.stop()
    }

    @Test("a slow job is paused, resumed, made faster, and comes to a good end")
    func steering() async throws {
        let test = try await agent()
        let jobs = test.client.jobs
        try await test.start(request { $0.speed = 1 })
        #expect(await status { _ = try await jobs.resume("vm-a") }?.message.contains("not paused") == true)
        let paused = try await jobs.pause("vm-a")
        #expect(paused.state == .paused && paused.pauseReason == .user)
        #expect(await status { _ = try await jobs.pause("vm-a") }?.message.contains("paused already") == true)
        #expect(
            await status { _ = try await jobs.setSpeed("vm-a", bytesPerSecond: -1) }?.code == .invalidArgument
        )
        #expect(try await jobs.setSpeed("vm-a", bytesPerSecond: 131072).speed == 131072)
        #expect(try await jobs.get("vm-a").state == .paused)
        #expect(try await test.client.drives.get("vm-a").jobID == "vm-a")
        #expect(
            await status { _ = try await test.backup(request { $0.jobID = "x" }) }?.reason == "DRIVE_BUSY")
        #expect(await status { _ = try await test.client.drives.remove("vm-a") }?.code == .failedPrecondition)
        let other = request("vm-b") {
            $0.target = directory.file("t.raw.partial"); $0.mode = .existing
        }
        #expect(await status { _ = try await test.backup(other) }?.reason == "TARGET_BUSY")
        let same = await status { _ = try await test.backup(request("vm-b")) }
        #expect(same?.reason == "TARGET_BUSY")
        #expect(try await jobs.resume("vm-a").state == .running)
        #expect(try await jobs.setSpeed("vm-a", bytesPerSecond: 0).speed == 0)
        #expect(try await test.end(of: "vm-a").completed != nil)
        try await qemuImg(["compare", directory.file("a.raw"), directory.file("t.raw")])
        await test.stop()
    }

    @Test("cancelling works while paused, and twice; the id and the drive are free afterwards")
    func cancelPaused() async throws {
        let test = try await agent()
        try await test.start(request { $0.speed = 1 })
        _ = try await test.client.jobs.pause("vm-a")
        let answer = try await test.client.jobs.cancel("vm-a")
        #expect(answer.state == .aborting || answer.state == .concluded)
        #expect(try await test.end(of: "vm-a").cancelled != nil)
        #expect(await status { _ = try await test.client.jobs.cancel("vm-a") }?.reason == "JOB_STATE")
        try await eventually { try await !snapshot(directory.path).contains("t.raw") }
        #expect(try await test.backup(request()).last?.completed != nil)
        await test.stop()
    }

    @Test("verbs and watches of a job that never was say so")
    func unknown() async throws {
        let test = try await agent()
        let jobs = test.client.jobs
        for verb in [jobs.pause, jobs.resume, jobs.finalize, jobs.dismiss] {
            #expect(await status { _ = try await verb("nobody") }?.reason == "JOB_NOT_FOUND")
        }
        #expect(await status { _ = try await jobs.get("nobody") }?.code == .notFound)
        let watched = await status { for try await _ in try await jobs.watch("nobody") {} }
        #expect(watched?.code == .notFound)
        await test.stop()
    }

    @Test("a request key makes a retry return the same job, even an ended one")
    func requestKeys() async throws {
        let test = try await agent()
        let keyed = request { $0.requestKey = "once" }
        async let first = test.backup(keyed)
        async let second = test.backup(keyed)
        let (one, two) = try await (first, second)
        #expect(one.first == two.first && one.last == two.last)
        let third = try await test.backup(keyed)
        #expect(third.first == one.first && third.last?.completed != nil)
        let other = request { ($0.requestKey, $0.target) = ("once", directory.file("u.raw")) }
        let status = await status { _ = try await test.backup(other) }
        #expect(status?.reason == "REQUEST_KEY_REUSED" && status?.code == .alreadyExists)
        #expect(try await test.client.jobs.list(all: true).count == 1)
        await test.stop()
    }

    @Test("a lost connection ends the call and not the job")
    func disconnected() async throws {
        let test = try await agent()
        let connection = try await test.agent.connectInProcess()
        var lost = try await connection.stream(BackupsMethods.start, request { $0.speed = 1 })
            .makeAsyncIterator()
        #expect(try await lost.next()?.started != nil)
        await connection.close()
        #expect(try await test.client.jobs.get("vm-a").state == .running)
        _ = try await test.client.jobs.setSpeed("vm-a", bytesPerSecond: 0)
        #expect(try await test.end(of: "vm-a").completed != nil)
        await test.stop()
    }

    @Test("stopping the agent suspends its jobs, nothing looks finished, and all goes on with the next")
    func stopping() async throws {
        let test = try await agent()
        try await test.start(request { $0.speed = 1 })
        let watching = Task { try await test.end(of: "vm-a") }
        while try await test.client.jobs.get("vm-a").progress?.current == 0 { await Task.yield() }
        await test.agent.stop()
        let outcome = await watching.result
        #expect(throws: RPCStatus.self, "the job has not ended") { try outcome.get() }
        #expect(try await snapshot(directory.path).contains("t.raw f") == false)
        let next = try await again()
        let info = try await next.client.agent.info()
        #expect(info.lastSequence > 4)
        _ = try await next.client.jobs.setSpeed("vm-a", bytesPerSecond: 0)
        let end = try await next.end(of: "vm-a")
        #expect(end.completed != nil && end.sequence > info.lastSequence)
        await next.stop()
    }
}
