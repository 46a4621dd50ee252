import BackupJobs
import BlockIO
import DiskImages
import DriveBackupClient
import Foundation
import Logging
import Synchronization
import TestKit
import Testing

@testable import BackupAgent

private typealias JobEvent = BackupAgent.JobEvent

/// An agent's memory without the agent: store, writer, log, and the manager that reads them. One life of it.
private struct Life {
    let store: StateStore
    let writer: HistoryWriter
    let log: EventLog
    let manager: JobManager
    let problems: AgentProblems
    /// The numbers of the lives before.
    let before: UInt64

    /// On a machine that is busy with other tests the database may be slow: only a test about that is to be out of patience.
    init(
        in directory: String, limits: HistoryLimits = HistoryLimits(), store given: StateStore? = nil,
        patience: Duration = .seconds(600)
    ) async throws {
        let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        let problems = AgentProblems(logger: logger)
        let store = try given ?? StateStore.open(directory: directory)
        let writer = HistoryWriter(
            store: store, limits: limits, problems: problems, patience: patience)
        before = try await store.reserved(.sequence)
        if given == nil { try await store.reserve(sequence: before + EventLog.reservation, job: 0) }
        log = EventLog(
            after: before, reserved: before + EventLog.reservation, history: writer,
            reserve: { writer.reserve(sequence: $0) })
        writer.begin(telling: log)
        let drives = DriveRegistry(
            engines: EnginePool(kind: .threads, maximum: 1), claims: FileClaims(), store: nil, logger: logger)
        manager = JobManager(
            drives: drives, targets: NoTargets(),
            files: JobFiles(recordDirectory: directory, stagingDirectory: directory), buffers: BufferPool(),
            log: log, history: JobHistory(store: store, writer: writer, problems: problems), logger: logger)
        (self.store, self.writer, self.problems) = (store, writer, problems)
    }

    /// A job begins and ends, with a few events between.
    func runJob(_ number: UInt64, events count: Int = 3) {
        let job = JobNumber(value: number)
        let id = "job\(number % 7)"
        for step in 0..<count {
            log.append([.progress(JobProgress(current: UInt64(step), total: 9))], job: job, id: id)
            log.append([.pending], job: job, id: id)
        }
        log.append([.pending, .completed(JobProgress(current: 9, total: 9))], job: job, id: id) { events in
            .ended(job, info(id, events))
        }
    }

    private func info(_ id: String, _ events: [JobEvent]) -> JobInfo {
        JobInfo(
            id: id, drive: id, target: "/t", state: .concluded, result: .completed,
            progress: JobProgress(current: 9, total: 9), speedBytesPerSecond: 0, sync: .full, createdAt: 1,
            endedAt: events.last?.time ?? 0, waitsForFinalize: false, waitsForDismiss: false,
            lastSequence: events.last?.sequence ?? 0)
    }

    var storedEvents: [UInt64] {
        get async throws {
            try await store.events(after: 0, through: .max, of: nil, limit: .max).map {
                try WireEvent.decode($0, limits: .response).sequence
            }
        }
    }

    var storedJobs: [UInt64] {
        get async throws { try await store.jobs(after: 0, limit: .max).map(\.number.value) }
    }
}

private struct NoTargets: TargetOpener {
    func check(_ spec: TargetSpec) async throws(AgentError) {}
    func open(_ spec: TargetSpec) async throws(AgentError) -> any JobTarget {
        throw AgentError(.ioError, "There are no targets.")
    }
    func reserve(_ spec: TargetSpec) {}
    func release(_ spec: TargetSpec) {}
    func reopen(_ spec: TargetSpec) async throws(AgentError) -> ReopenedTarget {
        throw AgentError(.targetLost, "There are no targets.")
    }
}

@Suite("What outlives the agent")
struct HistoryTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    @Test(
        "over kills a watcher misses nothing that was kept, sees nothing twice, and all it has seen is there")
    func kills() async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        for history in 0..<testRounds(12) {
            var place = directory.file("\(history)-0")
            try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
            var number: UInt64 = 0
            var seen: [UInt64] = []
            var ends: Set<UInt64> = []
            var last: UInt64 = 0
            for kill in 1...5 {
                let life = try await Life(in: place)
                #expect(life.before >= last, "a number is used again; seed \(seed)")
                for _ in 0..<Int.random(in: 1...60, using: &random) {
                    number += 1
                    life.runJob(number, events: Int.random(in: 0...12, using: &random))
                    if random.oneIn(3) { await Task.yield() }
                    if random.oneIn(2) { try await watch(life, &last, &seen, &ends) }
                }
                try await watch(life, &last, &seen, &ends)
                // The files as a kill leaves them: nothing is being written while the database is asked.
                let next = directory.file("\(history)-\(kill)")
                let here = place
                try await life.store.read("copy") { _ in
                    try FileManager.default.copyItem(atPath: here, toPath: next)
                }
                _ = await life.writer.finish(within: .seconds(600))
                life.store.close()
                place = next
                let after = try StateStore.open(directory: next)
                let kept = try await after.events(after: 0, through: .max, of: nil, limit: .max).map {
                    try WireEvent.decode($0, limits: .response)
                }
                #expect(Set(seen).subtracting(kept.map(\.sequence)).isEmpty, "seed \(seed)")
                // Whose end was seen is in the history.
                let jobs = try await after.jobs(after: 0, limit: .max)
                let lasts = try Set(jobs.map { try WireJob.decode($0.body, limits: .response).lastSequence })
                #expect(ends.isSubset(of: lasts), "seed \(seed)")
                after.close()
            }
            let life = try await Life(in: place)
            life.runJob(number + 1)
            #expect(await life.writer.finish(within: .seconds(600)))
            try await watch(life, &last, &seen, &ends)
            #expect(try await life.storedEvents == seen, "seed \(seed)")
            life.store.close()
        }
    }

    /// Sees what there is to see, from the event `last` on.
    private func watch(
        _ life: Life, _ last: inout UInt64, _ seen: inout [UInt64], _ ends: inout Set<UInt64>
    ) async throws {
        while true {
            let events = await life.manager.watchAll(after: last)
            guard let newest = events.last else { return }
            #expect(events.map(\.sequence) == Set(events.map(\.sequence)).sorted())
            #expect(events.allSatisfy { $0.sequence > last })
            for event in events where event.progress == nil {
                seen.append(event.sequence)
                if event.completed != nil { ends.insert(event.sequence) }
            }
            last = newest.sequence
        }
    }

    @Test("what is promised over a power cut is flushed when it is written, whatever was written before")
    func flushing() async throws {
        let scratch = try TemporaryDirectory()
        let store = try StateStore.open(directory: scratch.path)
        #expect(try store.flushesWrites())
        try await store.keepRelaxed([], forgetting: [JobNumber(value: 1)])
        #expect(try store.flushesWrites())
        store.close()
        let reopened = try StateStore.open(directory: scratch.path)
        #expect(try reopened.flushesWrites())
        reopened.close()
    }

    @Test("a watcher of one job that comes late has all its events, from the disk and from memory")
    func lateWatcher() async throws {
        let life = try await Life(in: directory.path)
        for number in 1...600 { life.runJob(UInt64(number)) }
        #expect(await life.writer.finish(within: .seconds(600)))
        #expect(life.log.boundary > 0, "memory keeps all events")
        for number in [1, 2, 300, 599, 600] {
            var last: UInt64 = 0
            var seen: [UInt64] = []
            while true {
                let (events, isEnd) = await life.manager.watch(JobNumber(value: UInt64(number)), after: last)
                seen += events.filter { $0.progress == nil }.map(\.sequence)
                last = events.last?.sequence ?? last
                if isEnd || events.isEmpty { break }
            }
            #expect(seen.count == 5 && seen == seen.sorted())
        }
        #expect(try await life.manager.show("job1").lastSequence > 0)
        life.store.close()
    }

    @Test("all ended jobs are listed, page by page, once each and in the order of their ends")
    func pages() async throws {
        let life = try await Life(in: directory.path)
        for number in 1...700 { life.runJob(UInt64(number), events: 0) }
        #expect(await life.writer.finish(within: .seconds(600)))
        var sequences: [UInt64] = []
        var pages = 0
        while true {
            let page = try await life.manager.listAll(after: sequences.last ?? 0)
            sequences += page.jobs.map(\.lastSequence)
            pages += 1
            if !page.more { break }
        }
        #expect(pages == 3 && sequences.count == 700)
        #expect(sequences == Set(sequences).sorted())
        life.store.close()
    }

    @Test("a job is among those that run until the history has its end, and from then on not any more")
    func alwaysKnown() async throws {
        let life = try await Life(in: directory.path)
        let spec = BackupSpec(drive: "vm1", target: "/t", sync: .full)
        func stored(_ number: UInt64) -> StoredJob {
            StoredJob(
                number: number, spec: spec, access: .everything, group: "", target: "/t", format: .raw,
                sync: .full, drive: StoredJob.DriveFile(path: "/d", device: 1, inode: 1, size: 1),
                pointInTime: 1, createdAt: 1, speedBytesPerSecond: 0, restarts: 0, phase: .finalizing)
        }
        func running() throws -> [UInt64] { try life.store.runningJobs().jobs.map(\.number) }
        let (first, second) = (JobNumber(value: 1), JobNumber(value: 2))
        try await life.store.keep([stored(1), stored(2), stored(3)])
        // What is kept of jobs that run, and what is kept of those that ended, comes by two ways: in this order,
        try await life.store.keepRelaxed([], forgetting: [], ended: [first])
        #expect(try running() == [1, 2, 3])
        life.runJob(1)
        life.runJob(2)
        await life.log.waitForEvent(after: life.before + 15)
        #expect(try running() == [3])
        // or in the other one, with what the job was in between.
        try await life.store.keepRelaxed([stored(2)], forgetting: [])
        try await life.store.keepRelaxed([], forgetting: [], ended: [second])
        #expect(try running() == [3])
        // One that has never started.
        try await life.store.keepRelaxed([], forgetting: [JobNumber(value: 3)])
        #expect(try running().isEmpty)
        #expect(await life.writer.finish(within: .seconds(600)))
        life.store.close()
    }

    @Test("old and surplus jobs are forgotten with their events, those of a request key stay as long as it")
    func retention() async throws {
        let life = try await Life(in: directory.path, limits: HistoryLimits(count: 20))
        var keys = RequestKeys()
        var spec = BackupSpec(drive: "vm1", target: "/t", sync: .full)
        spec.requestKey = "key"
        life.writer.add(
            keys.remember([spec], jobs: [JobNumber(value: 3)], now: WallClock.now()).map { .key($0) })
        // One that still runs, and one whose end nobody will see.
        let (running, lost) = (JobNumber(value: 1001), JobNumber(value: 1002))
        let stored = StoredJob(
            number: running.value, spec: spec, access: .everything, group: "", target: "/t", format: .raw,
            sync: .full, drive: StoredJob.DriveFile(path: "/d", device: 1, inode: 1, size: 1), pointInTime: 1,
            createdAt: 1, speedBytesPerSecond: 0, restarts: 0, phase: .running)
        try await life.store.keep([stored])
        for job in [running, lost] { life.log.append([.pending], job: job, id: "vm1") }
        for number in 1...300 { life.runJob(UInt64(number)) }
        while try await life.storedJobs != [3] + Array(281...300) { await Task.yield() }
        let numbers = try await life.store.events(after: 0, through: .max, of: nil, limit: .max).count
        #expect(numbers == 21 * 5 + 2, "the events of forgotten jobs are there")
        // Later, when the key is forgotten and all is old.
        let now = WallClock.now() + 1
        #expect(try await !life.store.forget(before: 0, beyond: 20, keyTime: now, limit: 100))
        #expect(try await life.storedJobs == Array(281...300))
        #expect(try await life.store.forget(before: now, beyond: 20, keyTime: now, limit: 15))
        #expect(try await life.storedJobs == Array(296...300))
        #expect(try await !life.store.forget(before: now, beyond: 20, keyTime: now, limit: 15))
        #expect(try await life.storedJobs.isEmpty)
        #expect(try await life.storedEvents.count == 1, "what runs has not kept its events, and nothing else")
        try await life.store.keep([], forgetting: [running])
        #expect(try await !life.store.forget(before: now, beyond: 20, keyTime: now, limit: 15))
        #expect(try await life.storedEvents.isEmpty)
        #expect(await life.writer.finish(within: .seconds(600)))
        life.store.close()
    }

    @Test("events that nothing can be kept of are seen all the same, memory is bounded, the operator is told")
    func refusedStore() async throws {
        let refusal = AgentError(.noSpace, "Nothing can be kept: no space is left")
        let store = try StateStore.open(path: ":memory:", refusal: refusal)
        let life = try await Life(in: directory.path, store: store)
        for number in 1...10 { life.runJob(UInt64(number)) }
        await life.log.waitForEvent(after: life.before + 79)
        #expect(life.log.events(after: 0, limit: .max).last?.sequence == 80)
        #expect(life.problems.sentences.contains { $0.contains("no space is left") })
        for number in 11...10_000 { life.runJob(UInt64(number)) }
        #expect(life.log.lastSequence == 80_000)
        #expect(life.log.events(after: 0, limit: .max).count <= 12_501)
        #expect(await life.writer.finish(within: .seconds(600)))
    }

    @Test(
        "a state directory that hangs makes no watcher wait for long; what happened meanwhile is kept when it goes on"
    )
    func hungStore() async throws {
        let life = try await Life(in: directory.path, patience: .seconds(2))
        let isHeld = OneShot<Void>()
        let letGo = DispatchSemaphore(value: 0)
        let store = life.store
        let holding = Task {
            try await store.read("hold") { _ in
                isHeld.fulfil(())
                letGo.wait()
            }
        }
        _ = await isHeld.wait()
        life.runJob(1)
        #expect(life.log.events(after: 0).isEmpty, "an event is shown that is not kept")
        await life.log.waitForEvent(after: life.before + 7)
        #expect(life.log.events(after: 0).count == 5)
        #expect(life.problems.sentences.count == 1)
        letGo.signal()
        try await holding.value
        life.runJob(2)
        #expect(await life.writer.finish(within: .seconds(600)))
        #expect(try await life.storedEvents.count == 10)
        #expect(life.problems.sentences.isEmpty)
        life.store.close()
    }

    @Test("a damaged database is set aside, and an empty one is made", arguments: ["noise", "page"])
    func damaged(_ how: String) async throws {
        let path = directory.file(StateStore.fileName)
        let life = try await Life(in: directory.path)
        for number in 1...100 { life.runJob(UInt64(number)) }
        #expect(await life.writer.finish(within: .seconds(600)))
        life.store.close()
        #expect(!FileManager.default.fileExists(atPath: path + "-wal"), "it was not closed")
        var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        if how == "noise" {
            bytes = Data((0..<8192).map { _ in UInt8.random(in: 0...255) })
        } else {
            for offset in stride(from: 4096, to: bytes.count, by: 4096) { bytes[offset] = 0xee }
        }
        try bytes.write(to: URL(fileURLWithPath: path))
        let opened = try StateStore.openWhatThereIs(directory: directory.path, scratch: directory.path)
        let problem = try #require(opened.problem)
        #expect(problem.contains(path) && problem.contains("damaged-") && opened.numbersAreLost)
        #expect(opened.store.refusal == nil)
        #expect(try await opened.store.jobs(after: 0, limit: 1).isEmpty)
        let aside = try FileManager.default.contentsOfDirectory(atPath: directory.path).filter {
            $0.hasPrefix("state.sqlite.damaged-") && !$0.hasSuffix("-wal") && !$0.hasSuffix("-shm")
        }
        let kept = try Data(contentsOf: URL(fileURLWithPath: directory.file(try #require(aside.first))))
        #expect(kept == bytes)
        opened.store.close()
    }

    @Test("a key's request is the same only when everything asked for is the same")
    func fingerprints() {
        let plain = BackupSpec(drive: "vm1", target: "/t", sync: .full)
        let changes: [(inout BackupSpec) -> Void] = [
            { $0.drive = "vm2" }, { $0.target = "/u" }, { $0.sync = .top }, { $0.format = .raw },
            { $0.format = .qcow2 },
            { $0.mode = .existing }, { $0.overwrites = true }, { $0.speedBytesPerSecond = 1 },
            { $0.jobID = "x" },
            { $0.waitsForFinalize = true }, { $0.waitsForDismiss = true }, { $0.keepsTarget = true },
            { $0.saveFailure = .breakGuestWrite }, { $0.saveTimeout = .zero }, { $0.stagingFull = .stall },
            { $0.target = "/t\" format=raw" },
        ]
        var all = Set([plain.fingerprint])
        for change in changes {
            var spec = plain
            change(&spec)
            #expect(all.insert(spec.fingerprint).inserted, "\(spec.fingerprint)")
            var same = plain
            change(&same)
            #expect(spec.fingerprint == same.fingerprint)
        }
        #expect(
            plain.fingerprint == #"drive="vm1" target="/t" jobID="vm1" sync=1"#, "it is kept over updates")
    }
}
