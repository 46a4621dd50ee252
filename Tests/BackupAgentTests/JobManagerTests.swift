import BackupJobs
import BlockIO
import DiskImages
import Logging
import Synchronization
import TestKit
import Testing

@testable import BackupAgent

/// Targets that do what a test says: succeed, fail, or hang until they are let go.
final class SimTargets: TargetOpener {
    struct Script: Sendable {
        var openHangs = false
        var openFails: AgentError?
        var writeHangs = false
        /// Looked at by each write.
        var writeFails: BlockError?
        var readHangs = false
        var completeHangs = false
        var completeFails: BlockError?
        var giveUpHangs = false
    }

    let script: Mutex<Script>
    let letGo = OneShot<Void>()
    let reached = OneShot<Void>()
    let givenUp = Mutex(0)
    let opened = Mutex(0)

    init(_ script: Script = Script()) { self.script = Mutex(script) }

    func check(_ spec: TargetSpec) async throws(AgentError) {}
    func reserve(_ spec: TargetSpec) {}
    func release(_ spec: TargetSpec) {}
    func reopen(_ spec: TargetSpec) async throws(AgentError) -> ReopenedTarget { .open(try await open(spec)) }

    func open(_ spec: TargetSpec) async throws(AgentError) -> any JobTarget {
        let script = script.withLock { $0 }
        if let error = script.openFails { throw error }
        if script.openHangs { await hang() }
        opened.withLock { $0 += 1 }
        return SimTarget(self, script, name: spec.path)
    }

    func hang() async {
        reached.fulfil(())
        _ = await letGo.wait()
    }
}

private final class SimTarget: JobTarget {
    let name: String
    let clusterSize: UInt64 = 65536
    let format = ImageFormat.raw
    let isProbedRaw = false
    let readsAsZero = true
    let failedOperation: JobIOError.Operation? = nil
    let manifestPath = ""
    // Of the protocol's own type: one that is not optional would not be taken for it, and the default, nil, would be.
    let resumption: TargetSpec.Resumption? = .init(
        device: 0, inode: 0, birthTime: 0, isNew: true, overwrites: false, readsAsZero: true,
        clusterSize: 65536)
    private let targets: SimTargets
    private let script: SimTargets.Script

    init(_ targets: SimTargets, _ script: SimTargets.Script, name: String) {
        (self.targets, self.script, self.name) = (targets, script, name)
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        if script.writeHangs { await targets.hang() }
        if let error = targets.script.withLock({ $0.writeFails }) { throw error }
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        if script.readHangs { await targets.hang() }
    }

    func writeZeroes(_ range: ByteRange) async throws(BlockError) {}

    func putManifest(_ content: [UInt8], isFinal: Bool) async throws(BlockError) {}

    func publish() async throws(BlockError) {}

    func prepare() async throws(BlockError) {
        if script.completeHangs { await targets.hang() }
        if let error = script.completeFails { throw error }
    }

    func leave() async {}

    func abandon(keep: Bool) async { _ = await giveUp(keep: keep) }

    func giveUp(keep: Bool, atOnce: Bool) async -> Bool {
        targets.givenUp.withLock { $0 += 1 }
        if script.giveUpHangs { await targets.hang() }
        return false
    }
}

@Suite("The job manager with targets that misbehave")
struct JobManagerTests {
    private let directory: TemporaryDirectory
    private let log = EventLog(after: 0)

    init() throws { directory = try TemporaryDirectory() }

    private func manager(_ targets: SimTargets) async throws -> JobManager {
        let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        try await makeRaw(directory.file("a.raw"))
        let drives = DriveRegistry(
            engines: EnginePool(kind: .threads, maximum: 1), claims: FileClaims(), store: nil, logger: logger)
        try await drives.openFromCommandLine(
            DriveOption(id: "vm1", file: directory.file("a.raw"), format: .raw))
        let files = JobFiles(recordDirectory: directory.file("jobs"), stagingDirectory: directory.path)
        _ = try files.prepare()
        return JobManager(
            drives: drives, targets: targets, files: files, buffers: BufferPool(), log: log, logger: logger)
    }

    private let spec = BackupSpec(drive: "vm1", target: "/t", sync: .full)

    /// Backups of the drive and of another one.
    private func pair(_ manager: JobManager) async throws -> [BackupSpec] {
        try await makeRaw(directory.file("b.raw"))
        try await manager.drives.openFromCommandLine(
            DriveOption(id: "vm2", file: directory.file("b.raw"), format: .raw))
        return [spec, BackupSpec(drive: "vm2", target: "/u", sync: .full)]
    }

    /// The job's last event, when it has come.
    private func end(of job: JobNumber, _ manager: JobManager) async -> JobEvent? {
        var last: UInt64 = 0
        while true {
            let (events, isEnd) = await manager.events(of: job, after: last)
            last = events.last?.sequence ?? last
            if isEnd { return events.last }
            if events.isEmpty { await log.waitForEvent(after: last, of: job) }
        }
    }

    private var filesAreLeft: Bool {
        get async throws {
            let script = "ls jobs; ls | grep staging"
            return try await !runProcess("sh", ["-c", script], directory: directory.path).output.isEmpty
        }
    }

    private func untilNoFileIsLeft() async throws { while try await filesAreLeft {} }

    @Test("a refused target leaves no job, no event and a free drive")
    func refused() async throws {
        let targets = SimTargets(.init(openFails: AgentError(.noSpace, "No space.")))
        let manager = try await manager(targets)
        await #expect(throws: AgentError(.noSpace, "No space.")) {
            try await manager.start(spec, access: .everything)
        }
        #expect(await manager.list(all: true).isEmpty && log.lastSequence == 0)
        targets.script.withLock { $0.openFails = nil }
        let (job, _) = try await manager.start(spec, access: .everything)
        #expect(await end(of: job, manager)?.kind.isEnd == true)
        #expect(try await manager.get("vm1").result == .completed)
    }

    @Test(
        "a job whose target hangs while it is opened can be cancelled, and the target is given up when it is open"
    )
    func hangingOpen() async throws {
        let targets = SimTargets(.init(openHangs: true))
        let manager = try await manager(targets)
        let starting = Task { try await manager.start(spec, access: .everything) }
        _ = await targets.reached.wait()
        #expect(try await manager.get("vm1").state == .created)
        _ = try await manager.perform(.cancel, on: "vm1")
        let result = await starting.result
        #expect(throws: AgentError.self) { try result.get() }
        #expect(await manager.list(all: true).isEmpty && log.lastSequence == 0)
        targets.script.withLock { $0.openHangs = false }
        let (job, _) = try await manager.start(spec, access: .everything)
        _ = await end(of: job, manager)
        targets.letGo.fulfil(())
        while targets.givenUp.withLock({ $0 }) == 0 { await Task.yield() }
    }

    @Test("a job whose target hangs in a write can be cancelled at once")
    func hangingWrite() async throws {
        let targets = SimTargets(.init(writeHangs: true))
        let manager = try await manager(targets)
        let (job, _) = try await manager.start(spec, access: .everything)
        _ = await targets.reached.wait()
        #expect(try await manager.perform(.cancel, on: "vm1").state == .aborting)
        guard case .cancelled? = await end(of: job, manager)?.kind else {
            Issue.record("the job did not end as cancelled")
            return
        }
        #expect(try await manager.get("vm1").result == .cancelled)
        #expect(targets.givenUp.withLock { $0 } == 1)
        targets.letGo.fulfil(())
    }

    @Test(
        "a cancelled job lets go of its drive before its target has returned, and leaves no file of its own")
    func drivesDoNotWait() async throws {
        let targets = SimTargets(.init(writeHangs: true, giveUpHangs: true))
        let manager = try await manager(targets)
        let (job, _) = try await manager.start(spec, access: .everything)
        _ = await targets.reached.wait()
        _ = try await manager.perform(.cancel, on: "vm1")
        while targets.givenUp.withLock({ $0 }) == 0 { await Task.yield() }
        #expect(try await manager.get("vm1").state == .aborting)
        let drive = try await manager.drives.get("vm1")
        #expect(drive.jobID == nil)
        #expect(await !manager.hasView(job))
        await #expect(throws: AgentError.self) { try await manager.view(of: "vm1") }
        try await untilNoFileIsLeft()
        // The drive is free for another job while the first one's target still hangs.
        targets.script.withLock { $0 = .init() }
        var next = spec
        next.jobID = "next"
        let (second, _) = try await manager.start(next, access: .everything)
        _ = await end(of: second, manager)
        #expect(try await manager.get("next").result == .completed)
        targets.letGo.fulfil(())
        _ = await end(of: job, manager)
        #expect(try await manager.get("vm1").result == .cancelled)
    }

    @Test(
        "a job that ends while a read of its point in time hangs in the target gives drive, target and files up",
        arguments: [JobVerb.cancel, .finalize])
    func hangingView(verb: JobVerb) async throws {
        let targets = SimTargets(.init(readHangs: true))
        let manager = try await manager(targets)
        var spec = spec
        spec.waitsForFinalize = true
        let (job, _) = try await manager.start(spec, access: .everything)
        while try await manager.get("vm1").state != .pending { await Task.yield() }
        let view = try await manager.view(of: "vm1").device
        let reading = Task { () async -> BlockError? in
            let buffer = IOBuffer(count: 4096)
            return await view.engine.run { () async -> BlockError? in
                do throws(BlockError) {
                    try await view.read(ByteRange(0..<4096), into: buffer.slice)
                    return nil
                } catch {
                    return error
                }
            }
        }
        _ = await targets.reached.wait()
        _ = try await manager.perform(verb, on: "vm1")
        let last = await end(of: job, manager)?.kind
        switch last {
        case .cancelled: #expect(verb == .cancel)
        case .completed: #expect(verb == .finalize)
        default: Issue.record("the job ended as \(String(describing: last))")
        }
        #expect(targets.givenUp.withLock { $0 } == (verb == .cancel ? 1 : 0))
        #expect(try await manager.drives.get("vm1").jobID == nil)
        // What hangs is the target; staging and record are read by nobody.
        try await untilNoFileIsLeft()
        var next = spec
        (next.jobID, next.waitsForFinalize) = ("next", false)
        let (second, _) = try await manager.start(next, access: .everything)
        _ = await end(of: second, manager)
        #expect(try await manager.get("next").result == .completed)
        targets.letGo.fulfil(())
        #expect(await reading.value != nil, "the point in time is over")
    }

    @Test("a job of a group whose target hangs can be cancelled, and takes the others with it")
    func hangingGroup() async throws {
        let targets = SimTargets(.init(openHangs: true))
        let manager = try await manager(targets)
        let specs = try await pair(manager)
        let starting = Task { try await manager.start(specs, access: .everything) }
        _ = await targets.reached.wait()
        // Not the one whose target hangs.
        _ = try await manager.perform(.cancel, on: "vm2")
        let result = await starting.result
        #expect(throws: AgentError.self) { try result.get() }
        #expect(await manager.list(all: true).isEmpty && log.lastSequence == 0)
        #expect(await manager.drives.list().allSatisfy { $0.jobID == nil })
        targets.letGo.fulfil(())
        while targets.givenUp.withLock({ $0 }) == 0 { await Task.yield() }
        #expect(targets.opened.withLock { $0 } == 1)
    }

    @Test("a job whose target hangs in its last flush can be cancelled, and a late success changes nothing")
    func hangingCompletion() async throws {
        let targets = SimTargets(.init(completeHangs: true))
        let manager = try await manager(targets)
        let (job, _) = try await manager.start(spec, access: .everything)
        _ = await targets.reached.wait()
        #expect(try await manager.get("vm1").state == .pending)
        _ = try await manager.perform(.cancel, on: "vm1")
        let end = await end(of: job, manager)
        let last = log.lastSequence
        targets.letGo.fulfil(())
        // The next job of the drive comes after whatever the first one still had to say.
        targets.script.withLock { $0.completeHangs = false }
        let (next, _) = try await manager.start(spec, access: .everything)
        _ = await self.end(of: next, manager)
        #expect(log.events(after: last, of: job).isEmpty)
        if case .cancelled? = end?.kind {} else { Issue.record("the job did not end as cancelled") }
    }

    @Test("a flush that fails at the end fails the job, and says so twice: as an I/O error and as its end")
    func failingCompletion() async throws {
        let error = BlockError("Couldn't flush /t", errno: 5)
        let targets = SimTargets(.init(completeFails: error))
        let manager = try await manager(targets)
        let (job, _) = try await manager.start(spec, access: .everything)
        guard case .failed(let failure, _)? = await end(of: job, manager)?.kind else {
            Issue.record("the job did not fail")
            return
        }
        #expect(failure.reason == .ioError && failure.message == error.message)
        let ioErrors = log.events(after: 0, of: job).compactMap { event -> JobIOError? in
            if case .ioError(let error) = event.kind { error } else { nil }
        }
        #expect(ioErrors.map(\.errno) == [5] && ioErrors.map(\.side) == [.target])
        #expect(targets.givenUp.withLock { $0 } == 1)
    }

    @Test("stopping suspends jobs and does not wait for one whose target hangs; no job starts afterwards")
    func stopping() async throws {
        let targets = SimTargets(.init(writeHangs: true))
        let manager = try await manager(targets)
        let (job, _) = try await manager.start(spec, access: .everything)
        _ = await targets.reached.wait()
        await manager.stop(within: .milliseconds(200))
        await manager.leave()
        #expect(try await manager.get("vm1").state == .running)
        #expect(await manager.events(of: job, after: 0).isEnd == false)
        let refusal = await #expect(throws: AgentError.self) {
            try await manager.start(spec, access: .everything)
        }
        #expect(refusal?.reason == .agentStopping)
        targets.letGo.fulfil(())
    }

    @Test("what ends while the agent stops takes its group with it: the next agent would complete the others")
    func stoppingGroup() async throws {
        let targets = SimTargets(.init(completeHangs: true))
        let manager = try await manager(targets)
        var specs = try await pair(manager)
        for index in specs.indices { specs[index].isGrouped = true }
        _ = try await manager.start(specs, access: .everything)
        _ = await targets.reached.wait()
        await manager.stop(within: .milliseconds(1))
        _ = try await manager.perform(.cancel, on: "vm2")
        for id in ["vm1", "vm2"] {
            let job = try await manager.get(id)
            #expect(job.state == .aborting || job.result == .cancelled, "\(job)")
        }
        targets.letGo.fulfil(())
    }

    @Test("of many starts of one drive at once one is accepted")
    func race() async throws {
        let targets = SimTargets(.init(completeHangs: true))
        let manager = try await manager(targets)
        let outcomes = await withTaskGroup(of: AgentError.Reason?.self) { group in
            for number in 0..<50 {
                group.addTask {
                    var spec = spec
                    if number.isMultiple(of: 2) { spec.jobID = "job\(number)" }
                    do throws(AgentError) {
                        _ = try await manager.start(spec, access: .everything)
                        return nil
                    } catch {
                        return error.reason
                    }
                }
            }
            return await group.reduce(into: [AgentError.Reason?]()) { $0.append($1) }
        }
        #expect(outcomes.filter { $0 == nil }.count == 1)
        #expect(outcomes.allSatisfy { $0 == nil || $0 == .driveBusy || $0 == .jobExists })
        #expect(targets.opened.withLock { $0 } == 1)
        targets.letGo.fulfil(())
        await manager.stop(within: .seconds(60))
    }
}
