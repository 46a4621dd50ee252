import BackupJobs
import BlockIO
import DiskImages
import DriveBackupClient
import Logging
import Synchronization
import TestKit
import Testing

@testable import BackupAgent

/// Clients that send random verbs to one job at once, and what the answers may be.
private struct Storm: Sendable {
    typealias State = BackupAgent.JobState

    /// The states in which a verb is accepted. A pause that was asked for may not be reached yet: then the state is still
    /// the one before, and a resume is accepted there.
    static let accepting: [JobVerb: Set<State>] = {
        var states: [JobVerb: Set<State>] = [.resume: [.created, .running]]
        for (state, verbs) in JobStateMachineTests.allowed {
            for verb in verbs { states[verb, default: []].insert(state) }
        }
        return states
    }()
    /// What the job may be in the answer of an accepted verb. A pause is given a moment to be reached, and set-speed looks
    /// again afterwards: anything may have happened by then.
    static let after: [JobVerb: Set<State>] = [
        .resume: [.created, .running], .cancel: [.aborting, .concluded, .created],
        .finalize: [.pending, .concluded], .dismiss: [.concluded],
    ]

    /// Sends a verb; the job's state in the answer, or why it was refused.
    let send: @Sendable (JobVerb) async -> Result<State, AgentError>

    /// Several clients send `count` verbs each; what was wrong with the answers.
    func rage(_ verbs: [JobVerb], count: Int, seed: UInt64) async -> [String] {
        await withTaskGroup(of: [String].self) { group in
            for client in 0..<6 {
                group.addTask {
                    var random = SeededGenerator(seed &* 31 &+ UInt64(client))
                    var wrong: [String] = []
                    for _ in 0..<count {
                        guard let verb = verbs.randomElement(using: &random) else { break }
                        if let complaint = judge(verb, await send(verb)) { wrong.append(complaint) }
                    }
                    return wrong
                }
            }
            return await group.reduce(into: []) { $0 += $1 }
        }
    }

    private func judge(_ verb: JobVerb, _ answer: Result<State, AgentError>) -> String? {
        switch answer {
        case .success(let state):
            guard Self.after[verb]?.contains(state) == false else { return nil }
            return "\(verb) is accepted, and the job is \(state)"
        case .failure(let error):
            let words = error.message
            guard error.reason == .jobState else { return "\(verb): \(words)" }
            if words.hasSuffix("it is paused already") { return verb == .pause ? nil : words }
            if words.hasSuffix("was dismissed already") { return verb == .dismiss ? nil : words }
            if words.hasSuffix("it was not paused") { return verb == .resume ? nil : words }
            if words.hasSuffix("it is being finalized already") { return verb == .finalize ? nil : words }
            // "... in the state X a job refuses VERB": not one that accepts it.
            let refusing = State.allCases.filter { Self.accepting[verb]?.contains($0) != true }
            let isRight = refusing.contains {
                words.hasSuffix("in the state \($0.word) a job refuses \(verb.rawValue)")
            }
            return isRight ? nil : words
        }
    }
}

/// What is wrong with the events of a job that has ended.
private func complaints(about events: [BackupAgent.JobEvent]) -> [String] {
    var wrong: [String] = []
    var state: BackupAgent.JobState?
    for event in events {
        guard case .stateChanged(let new, let previous, let reason, let error) = event.kind else { continue }
        if previous != state {
            wrong.append("\(String(describing: previous)) after \(String(describing: state))")
        }
        if (new == .paused) != (reason != nil) {
            wrong.append("\(new) with the reason \(String(describing: reason))")
        }
        if (reason == .error) != (error != nil) {
            wrong.append("paused by an error without one, or the other way")
        }
        state = new
    }
    if state != .concluded { wrong.append("it ends as \(String(describing: state))") }
    if events.count(where: { $0.kind.isEnd }) != 1 { wrong.append("not one end") }
    if events.last?.kind.isEnd != true { wrong.append("something follows the end") }
    return wrong
}

@Suite("Verbs at any moment, by several clients at once")
struct VerbTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    @Test("every answer is one of the table, and a job has one end", arguments: [BackupSync.full, .none])
    func agent(sync: BackupSync) async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        try await makeRaw(directory.file("a.raw"))
        let agent = try await AgentUnderTest(
            drives: [DriveOption(id: "vm1", file: directory.file("a.raw"), format: .raw)], in: directory)
        var clients: [DriveBackupClient] = []
        for _ in 0..<6 {
            clients.append(
                DriveBackupClient(
                    connection: try await agent.agent.connectInProcess(), address: agent.client.address))
        }
        let next = Atomic(0)
        let storm = Storm { [clients] verb in
            let jobs = clients[next.add(1, ordering: .relaxed).newValue % clients.count].jobs
            do {
                let job =
                    switch verb {
                    case .pause: try await jobs.pause("vm1")
                    case .resume: try await jobs.resume("vm1")
                    case .cancel: try await jobs.cancel("vm1")
                    case .finalize: try await jobs.finalize("vm1")
                    case .dismiss: try await jobs.dismiss("vm1")
                    case .setSpeed: try await jobs.setSpeed("vm1", bytesPerSecond: 1 << 16)
                    }
                guard let state = BackupAgent.JobState(rawValue: job.state.rawValue) else {
                    return .failure(AgentError(.ioError, "the state \(job.state) is none"))
                }
                return .success(state)
            } catch {
                let status = error as? RPCStatus
                let reason = (status?.reason).flatMap(AgentError.Reason.init(rawValue:)) ?? .ioError
                return .failure(AgentError(reason, status?.message ?? "\(error)"))
            }
        }
        for round in 0..<testRounds(6) {
            var request = BackupRequest(
                drive: "vm1", target: directory.file("t\(round)"), sync: SyncMode(rawValue: sync.rawValue))
            request.format = "qcow2"
            request.speed = 1 << 16
            request.manualFinalize = sync != .none
            request.manualDismiss = true
            try await agent.start(request)
            // It lasts until somebody ends it, in every other round in the midst of everything.
            var verbs: [JobVerb] = [.pause, .resume, .pause, .resume, .setSpeed, .finalize]
            if round.isMultiple(of: 2) { verbs += [.cancel] }
            let wrong = await storm.rage(verbs, count: 25, seed: random.next())
            #expect(wrong == [], "seed \(seed), round \(round)")
            // Refused where it has ended already.
            _ = try? await agent.client.jobs.cancel("vm1")
            _ = try await agent.end(of: "vm1")
            let late = await storm.rage(
                JobVerb.allCases.filter { $0 != .dismiss }, count: 5, seed: random.next())
            #expect(late == [], "seed \(seed), round \(round)")
            var events: [WireEvent] = []
            for try await event in try await agent.client.jobs.watch("vm1") { events.append(event) }
            #expect(
                events.count { $0.completed != nil || $0.failed != nil || $0.cancelled != nil } == 1,
                "seed \(seed)")
            let changes = events.compactMap(\.stateChanged)
            for (one, other) in zip(changes, changes.dropFirst()) {
                #expect(other.previous == one.state, "seed \(seed)")
            }
            // Of many who dismiss it one does.
            let dismissed = await withTaskGroup(of: Bool.self) { group in
                for _ in 0..<6 {
                    group.addTask { if case .success = await storm.send(.dismiss) { true } else { false } }
                }
                return await group.reduce(0) { $0 + ($1 ? 1 : 0) }
            }
            #expect(dismissed == 1)
        }
        for client in clients { await client.close() }
        await agent.stop()
    }

    @Test("so is it while the target fails and is mended again and again")
    func failingTarget() async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        try await makeRaw(directory.file("a.raw"))
        let targets = SimTargets()
        let log = EventLog(after: 0)
        let drives = DriveRegistry(
            engines: EnginePool(kind: .threads, maximum: 1), claims: FileClaims(), store: nil, logger: logger)
        try await drives.openFromCommandLine(
            DriveOption(id: "vm1", file: directory.file("a.raw"), format: .raw))
        let files = JobFiles(recordDirectory: directory.file("jobs"), stagingDirectory: directory.path)
        _ = try files.prepare()
        let manager = JobManager(
            drives: drives, targets: targets, files: files, buffers: BufferPool(), log: log, logger: logger)
        let storm = Storm { verb in
            do throws(AgentError) {
                return .success(try await manager.perform(verb, on: "vm1").state)
            } catch {
                return .failure(error)
            }
        }
        for round in 0..<testRounds(10) {
            let full = BlockError("Couldn't write", errno: 28, range: ByteRange(offset: 0, length: 4096))
            targets.script.withLock { $0.writeFails = full }
            var spec = BackupSpec(drive: "vm1", target: "/t", sync: .full)
            spec.onTargetError = round.isMultiple(of: 2) ? .stop : .enospc
            spec.waitsForDismiss = true
            let (job, _) = try await manager.start(spec, access: .everything)
            // Nothing but an error brings it there.
            var last: UInt64 = 0
            while try await manager.get("vm1").pauseReason != .error {
                await log.waitForEvent(after: last, of: job)
                last = await manager.events(of: job, after: last).events.last?.sequence ?? last
            }
            let paused = try await manager.get("vm1")
            #expect(paused.state == .paused && paused.pauseError?.errno == 28 && paused.errorCount > 0)
            let verbs: [JobVerb] = [.pause, .resume, .setSpeed, .finalize, .dismiss]
            let wrong = await storm.rage(verbs, count: 20, seed: random.next())
            #expect(wrong == [], "seed \(seed), round \(round)")
            targets.script.withLock { $0.writeFails = nil }
            let isCancelled = random.oneIn(3)
            if isCancelled { _ = try await manager.perform(.cancel, on: "vm1") }
            while try await manager.get("vm1").state != .concluded {
                // A pause that is under way when it is taken back is none; one that comes later is.
                _ = try? await manager.perform(.resume, on: "vm1")
                await log.waitForEvent(after: last, of: job)
                last = await manager.events(of: job, after: last).events.last?.sequence ?? last
            }
            let info = try await manager.get("vm1")
            #expect(info.result == (isCancelled ? .cancelled : .completed), "seed \(seed), round \(round)")
            let events = log.events(after: 0, of: job, limit: .max)
            #expect(complaints(about: events) == [], "seed \(seed), round \(round)")
            let errors = events.compactMap { event -> JobIOError? in
                if case .ioError(let error) = event.kind { error } else { nil }
            }
            #expect(errors.reduce(0) { $0 + UInt64($1.count) } == info.errorCount, "seed \(seed)")
            #expect(errors.allSatisfy { $0.action == .stop && $0.operation == .write })
            _ = try await manager.perform(.dismiss, on: "vm1")
        }
        await manager.stop(within: .seconds(60))
    }
}
