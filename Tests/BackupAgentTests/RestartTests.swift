import BackupJobs
import DiskImages
import DriveBackupClient
import Foundation
import TestKit
import Testing

@testable import BackupAgent
@testable import BlockIO

/// What an agent that was killed has left is planted, and an agent is started on it.
@Suite("Jobs that an agent before has left", .serialized)
struct RestartTests {
    private let directory: TemporaryDirectory
    private let store: StateStore

    init() throws {
        directory = try TemporaryDirectory()
        for name in ["state", "state/staging", "run", "run/jobs", "out"] {
            #expect(mkdir(directory.file(name), 0o700) == 0)
        }
        store = try StateStore.open(directory: directory.file("state"))
    }

    private static let size = 1 << 20

    private func status(of path: String) throws -> stat {
        var status = stat()
        guard stat(path, &status) == 0 else { throw TestKitError("There is no \(path)") }
        return status
    }

    /// The drive `id`, and its backup as far as `phase` tells, whose file is called `name`.
    private func plant(
        _ number: UInt64, _ id: String, file name: String, grouped: Bool = false, phase: StoredJob.Phase
    ) throws -> StoredJob {
        let drive = directory.file("\(id).raw")
        try Data(repeating: UInt8(number), count: Self.size).write(to: URL(fileURLWithPath: drive))
        let path = directory.file("out/\(name)")
        try Data(repeating: UInt8(number), count: Self.size).write(to: URL(fileURLWithPath: path))
        let (driveStatus, targetStatus) = (try status(of: drive), try status(of: path))
        let descriptor = open(path, O_RDONLY)
        defer { close(descriptor) }
        var spec = BackupSpec(drive: id, target: directory.file("out/\(id)"), sync: .full)
        spec.isGrouped = grouped
        return StoredJob(
            number: number, spec: spec, access: .everything, group: grouped ? "group-1" : "",
            target: spec.target,
            format: .raw, sync: .full,
            resumption: TargetSpec.Resumption(
                device: UInt64(targetStatus.st_dev), inode: UInt64(targetStatus.st_ino),
                birthTime: Descriptor.birthTime(descriptor), isNew: true, overwrites: false,
                readsAsZero: true,
                clusterSize: 4096),
            drive: StoredJob.DriveFile(
                path: drive, device: UInt64(driveStatus.st_dev), inode: UInt64(driveStatus.st_ino),
                size: UInt64(Self.size)),
            pointInTime: 1, createdAt: 1, speedBytesPerSecond: 0, restarts: 2,
            started: nil, phase: phase)
    }

    /// The record of a planted job, nothing done; and its empty staging.
    private func plantRecord(
        of job: StoredJob, isFlushing: Bool = false, isWriting: Bool = false
    ) async throws {
        let engine = try EngineKind.threads.makeEngine(name: "plant")
        let name = "\(job.number)-\(job.spec.jobID)"
        let record = try JobRecord.create(
            at: directory.file("run/jobs/\(name).record"), driveSize: UInt64(Self.size), clusterSize: 65536,
            engine: engine)
        record.isFlushing = isFlushing
        let file = try await engine.run { () async throws(BlockError) in
            try await HostFile.open(job.drive.path, readOnly: true, on: engine)
        }
        await engine.run {
            file.noteChanges(in: record.changeTimes)
            // It was killed before that had ended.
            if isWriting { file.beginChange() }
        }
        try await engine.run { () async throws(BlockError) in try await file.close() }
        let staging = directory.file("state/staging/\(name).staging")
        #expect(FileManager.default.createFile(atPath: staging, contents: nil))
        #expect(truncate(staging, Self.size) == 0)
        let sums = try await BlockSums.create(
            at: directory.file("state/staging/\(name).sums"), driveSize: UInt64(Self.size),
            algorithm: job.spec.checksum, on: engine)
        try await sums.close()
        await engine.shutDown()
    }

    /// Starts an agent on what is planted.
    private func start(_ jobs: [StoredJob]) async throws -> AgentUnderTest {
        try await store.keep(jobs)
        store.close()
        return try await AgentUnderTest(
            drives: jobs.map { DriveOption(id: $0.spec.drive, file: $0.drive.path, format: .raw) },
            in: directory)
    }

    /// The targets, by whatever names; manifests are beside those that are complete.
    private var files: [String] {
        get throws {
            try FileManager.default.contentsOfDirectory(atPath: directory.file("out")).sorted()
                .filter { !$0.hasSuffix(Manifest.suffix) }
        }
    }

    @Test("a group that was decided to complete completes, whichever targets have their names")
    func rollForward() async throws {
        let jobs = [
            try plant(1, "a", file: "a", grouped: true, phase: .decided),
            try plant(2, "b", file: "b.partial", grouped: true, phase: .decided),
            try plant(3, "c", file: "c.partial", grouped: true, phase: .decided),
        ]
        let test = try await start(jobs)
        for id in ["a", "b", "c"] {
            #expect(try await test.end(of: id).completed != nil)
            #expect(try await test.client.jobs.get(id).restarts == 3)
        }
        #expect(try files == ["a", "b", "c"])
        await test.stop()
        let after = try StateStore.open(directory: directory.file("state"))
        #expect(try after.runningJobs().jobs.isEmpty)
    }

    @Test("where one of a decided group cannot get its name the others do")
    func rollForwardWithAnObstacle() async throws {
        let jobs = [
            try plant(1, "a", file: "a.partial", grouped: true, phase: .decided),
            try plant(2, "b", file: "b.partial", grouped: true, phase: .decided),
        ]
        try Data("somebody's".utf8).write(to: URL(fileURLWithPath: directory.file("out/a")))
        let test = try await start(jobs)
        #expect(try await test.end(of: "a").failed?.error?.reason == "TARGET_EXISTS")
        #expect(try await test.end(of: "b").completed != nil)
        #expect(try files == ["a", "b"])
        #expect(
            try Data(contentsOf: URL(fileURLWithPath: directory.file("out/a"))) == Data("somebody's".utf8))
        await test.stop()
    }

    @Test(
        "what lands soon after a kill was in flight at it, what is changed later was changed by somebody else"
    )
    func changedInBetween() async throws {
        let jobs = [
            try plant(1, "a", file: "a.partial", phase: .running),
            try plant(2, "b", file: "b.partial", phase: .running),
        ]
        for (job, seconds) in zip(jobs, [5.0, 15.0]) {
            try await plantRecord(of: job, isWriting: true)
            try FileManager.default.setAttributes(
                [.modificationDate: Date(timeIntervalSinceNow: seconds)], ofItemAtPath: job.drive.path)
        }
        let test = try await start(jobs)
        #expect(try await test.end(of: "a").completed != nil)
        #expect(try await test.end(of: "b").failed?.error?.reason == "SOURCE_CHANGED")
        await test.stop()
    }

    @Test("a target that existed before, and is another one now or has become shorter, is not gone on with")
    func existingTargets() async throws {
        var jobs: [StoredJob] = []
        for (index, id) in ["a", "b", "c"].enumerated() {
            var job = try plant(UInt64(index + 1), id, file: id, phase: .running)
            job.spec.mode = .existing
            job.resumption?.isNew = false
            job.resumption?.readsAsZero = false
            if id == "b", let time = job.resumption?.birthTime { job.resumption?.birthTime = time &- 1 }
            if id == "c" { #expect(truncate(directory.file("out/c"), Self.size / 2) == 0) }
            try await plantRecord(of: job)
            jobs.append(job)
        }
        let test = try await start(jobs)
        #expect(try await test.end(of: "a").completed != nil)
        for id in ["b", "c"] { #expect(try await test.end(of: id).failed?.error?.reason == "TARGET_LOST") }
        #expect(try files == ["a", "b", "c"])
        await test.stop()
    }

    @Test("the key of a request stands for all that it has started, also where some of it has ended")
    func requestKeys() async throws {
        var jobs = [
            try plant(1, "a", file: "a.partial", phase: .running),
            try plant(2, "b", file: "b.partial", phase: .running),
        ]
        for index in jobs.indices { jobs[index].spec.requestKey = "key" }
        let now = WallClock.now()
        var keys = RequestKeys()
        let numbers = jobs.map { JobNumber(value: $0.number) }
        try await store.keep(
            StateStore.HistoryBatch(keys: keys.remember(jobs.map(\.spec), jobs: numbers, now: now)))
        try await plantRecord(of: jobs[1])
        // The other one has ended.
        let test = try await start([jobs[1]])
        var found = await test.agent.jobs.keys
        #expect(try found.jobs(for: jobs.map(\.spec), now: now) == numbers)
        await test.stop()
    }

    @Test("a kill during the final flush fails the job, unless its target has its name")
    func flushing() async throws {
        let jobs = [
            try plant(1, "a", file: "a.partial", phase: .finalizing),
            try plant(2, "b", file: "b", phase: .finalizing),
        ]
        for job in jobs { try await plantRecord(of: job, isFlushing: true) }
        let test = try await start(jobs)
        #expect(try await test.end(of: "a").failed?.error?.reason == "FLUSH_INTERRUPTED")
        #expect(try await test.end(of: "b").completed != nil)
        #expect(try files == ["b"])
        await test.stop()
    }

    @Test("one interrupted flush fails a group that is not decided")
    func flushingGroup() async throws {
        let jobs = [
            try plant(1, "a", file: "a.partial", grouped: true, phase: .finalizing),
            try plant(2, "b", file: "b.partial", grouped: true, phase: .finalizing),
        ]
        try await plantRecord(of: jobs[0])
        try await plantRecord(of: jobs[1], isFlushing: true)
        let test = try await start(jobs)
        #expect(try await test.end(of: "a").cancelled != nil)
        #expect(try await test.end(of: "b").failed?.error?.reason == "FLUSH_INTERRUPTED")
        try await eventually { try files.isEmpty }
        await test.stop()
    }

    @Test("what was being given up is given up, for the reason it was")
    func givingUp() async throws {
        let jobs = [
            try plant(1, "a", file: "a.partial", phase: .cancelling),
            try plant(2, "b", file: "b.partial", phase: .failing(AgentError(.noSpace, "No space."))),
        ]
        let test = try await start(jobs)
        #expect(try await test.end(of: "a").cancelled != nil)
        #expect(try await test.end(of: "b").failed?.error?.reason == "NO_SPACE")
        #expect(try files.isEmpty)
        await test.stop()
    }

    @Test("a job that waits to be finalized says so, where the agent before could not keep that it had")
    func asksAgain() async throws {
        var job = try plant(1, "a", file: "a.partial", phase: .pending)
        job.spec.waitsForFinalize = true
        try await plantRecord(of: job)
        let test = try await start([job])
        for try await event in try await test.client.jobs.watch("a") where event.pending != nil { break }
        _ = try await test.client.jobs.finalize("a")
        let end = try await test.end(of: "a")
        #expect(end.completed != nil, "\(end)")
        await test.stop()
    }

    @Test("while the agent before still has the target the job copies nothing, and all verbs work")
    func busy() async throws {
        let jobs = [
            try plant(1, "a", file: "a.partial", phase: .running),
            try plant(2, "b", file: "b.partial", phase: .running),
        ]
        for job in jobs { try await plantRecord(of: job) }
        let holders = try ["a", "b"].map { id in
            let descriptor = open(directory.file("out/\(id).partial"), O_RDWR)
            try ImageLock.acquire(descriptor, holding: .all, unsharing: .all, path: id)
            return descriptor
        }
        let test = try await start(jobs)
        while try await test.client.jobs.get("a").targetBusy.isEmpty { await Task.yield() }
        #expect(try await test.client.jobs.pause("a").state == .paused)
        #expect(try await test.client.jobs.resume("a").state == .running)
        #expect(try await test.client.jobs.setSpeed("a", bytesPerSecond: 1 << 30).speed == 1 << 30)
        #expect(try await test.client.jobs.get("a").progress?.current == 0)
        _ = try await test.client.jobs.cancel("b")
        #expect(try await test.end(of: "b").cancelled != nil)
        for holder in holders {
            ImageLock.releaseAll(holder)
            close(holder)
        }
        #expect(try await test.end(of: "a").completed != nil)
        // What was given up while it was busy is removed as soon as it can be.
        try await eventually { try files == ["a"] }
        let whole = try Data(contentsOf: URL(fileURLWithPath: directory.file("out/a")))
        #expect(whole == Data(repeating: 1, count: Self.size))
        await test.stop()
    }

    @Test(
        "a job is suspended with its agent and goes on with the next", arguments: [ImageFormat.raw, .qcow2])
    func suspended(format: ImageFormat) async throws {
        store.close()
        let path = directory.file("d.raw")
        try Data(repeating: 9, count: Self.size).write(to: URL(fileURLWithPath: path))
        let drives = [DriveOption(id: "d", file: path, format: .raw)]
        var test = try await AgentUnderTest(drives: drives, in: directory)
        var request = BackupRequest()
        (request.drive, request.target, request.sync) = ("d", directory.file("out/d"), .full)
        (request.format, request.speed, request.requestKey) = (format.rawValue, 1, "k")
        let started = try await test.start(request)
        // At once: the one before may not have opened the target yet.
        for _ in 0..<4 {
            await test.stop()
            test = try await AgentUnderTest(drives: drives, in: directory)
            #expect(try await test.client.jobs.get("d").state == .running)
        }
        #expect(
            try await test.start(request).sequence == started.sequence, "the same request has the same job")
        _ = try await test.client.jobs.setSpeed("d", bytesPerSecond: 0)
        let end = try await test.end(of: "d")
        #expect(end.completed != nil, "\(end)")
        #expect(try await test.client.jobs.get("d").restarts == 4)
        await test.stop()
        #expect(try files == ["d"])
        let compared = try await runProcess(
            "qemu-img", ["compare", "-f", "raw", "-F", format.rawValue, path, directory.file("out/d")])
        #expect(compared.status == 0, "\(compared.output) \(compared.error)")
    }
}
