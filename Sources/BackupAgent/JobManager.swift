internal import BackupJobs
package import BlockIO
internal import DiskImages
package import Logging

// The manager owns every job from the request to the history; calls come and go, jobs stay. What it decides,
// it decides in one step without an await: a verb or a report goes into the job's state machine, the effects
// come out and are carried out or set off. Work that takes time (opening, copying, completing, giving up) is
// done by tasks that the job's record keeps, in JobManager+Running.swift; they come back with a report.
// Nothing here ever sees a block.

/// All jobs, running and ended.
package actor JobManager {
    /// A job that has not been dismissed.
    struct Record {
        let number: JobNumber
        let spec: BackupSpec
        let control: JobControl
        var info: JobInfo
        var machine: JobStateMachine
        /// The start's outcome: the `started` event, or the refusal.
        let start = OneShot<Result<JobEvent, AgentError>>()
        /// Raised when a job that starts with this one is to stop, for what waits before the copy begins.
        let stop: OneShot<Void>
        var target: (any JobTarget)?
        /// What it has of its drive, until it lets go of it.
        var hold: DriveHold?
        /// Begun once.
        var lettingGo: LettingGo?
        /// What the operator was to know before the job had started.
        var earlyWarnings: [JobIOError] = []
        var started: JobEvent?
        /// What a backup's manifest is to say, or what that of one that is read says.
        var manifest: Manifest?
        /// The backup that is read is one layer, without what it lies on.
        var isLayer = false
        /// Why a job that has not started has to go.
        var startRefusal: AgentError?
        var lastProgress = JobProgress.none
        var lastProgressTime: Int64 = 0
        var tasks: [Task<Void, Never>] = []
    }

    /// What is left of a job that has ended.
    struct Ended {
        var info: JobInfo
        var started: JobEvent?
        var end: JobEvent?
    }

    /// How many ended jobs are remembered.
    static let historyBound = 1000

    let drives: DriveRegistry
    /// Where points in time are exported; nil in tests that have none.
    let exports: ExportRegistry?
    let targets: any TargetOpener
    let files: JobFiles
    let buffers: BufferPool
    let log: EventLog
    let clock: @Sendable () -> Int64
    let logger: Logger

    var records: [JobNumber: Record] = [:]
    private var ended: [JobNumber: Ended] = [:]
    private var history: [JobNumber] = []
    private var keys = RequestKeys()
    private var lastNumber: UInt64 = 0
    private var isStopping = false

    package init(
        drives: DriveRegistry, exports: ExportRegistry? = nil, targets: any TargetOpener, files: JobFiles,
        buffers: BufferPool, log: EventLog, clock: @escaping @Sendable () -> Int64 = WallClock.now,
        logger: Logger
    ) {
        self.drives = drives
        self.exports = exports
        self.targets = targets
        self.files = files
        self.buffers = buffers
        self.log = log
        self.clock = clock
        self.logger = logger
    }

    // MARK: Starting

    /// Starts a backup. Returns its number and its `started` event when the point in time is fixed; the job
    /// goes on whatever becomes of the caller. When it throws, there is no job and nothing was made or
    /// changed.
    package func start(
        _ spec: BackupSpec, access: PathAccess
    ) async throws(AgentError) -> (job: JobNumber, started: JobEvent) {
        let jobs = try await start([spec], access: access)
        guard let job = jobs.first else { throw AgentError(.jobNotFound, "The job is not known any more") }
        return job
    }

    /// Starts backups of as many drives at one point in time, as `start` does: all, or none. All specs have the same
    /// request key.
    package func start(
        _ specs: [BackupSpec], access: PathAccess
    ) async throws(AgentError) -> [(job: JobNumber, started: JobEvent)] {
        var jobs: [(job: JobNumber, started: JobEvent)] = []
        for number in try await accept(specs, access) {
            guard let outcome = await outcome(of: number) else {
                let ids = specs.map(\.jobID).joined(separator: ", ")
                throw AgentError(
                    .jobCancelled,
                    specs.count == 1
                        ? "The call was given up; the job \(ids) goes on"
                        : "The call was given up; the jobs \(ids) go on")
            }
            jobs.append((number, try outcome.get()))
        }
        return jobs
    }

    private func accept(_ specs: [BackupSpec], _ access: PathAccess) async throws(AgentError) -> [JobNumber] {
        try checkNotStopping()
        if let known = try keys.jobs(for: specs, now: clock()) { return known }
        // The drives are looked at first for the sake of the message; the leases decide.
        for spec in specs where !spec.drive.isEmpty { try await drives.check(spec.drive) }
        // Others may have come in between.
        try checkNotStopping()
        if let known = try keys.jobs(for: specs, now: clock()) { return known }
        for spec in specs where live(spec.jobID) != nil {
            throw AgentError(
                .jobExists,
                "There is a job \(spec.jobID) already (give another --job-id, or dismiss it when it ended)",
                subject: spec.jobID)
        }
        let stop = OneShot<Void>()
        let numbers = specs.map { spec in
            let record = makeRecord(spec, stop)
            records[record.number] = record
            return record.number
        }
        keys.remember(specs, jobs: numbers, now: clock())
        let task = Task { await self.run(numbers, access) }
        for number in numbers { own(number, task) }
        return numbers
    }

    private func makeRecord(_ spec: BackupSpec, _ stop: OneShot<Void>) -> Record {
        lastNumber += 1
        let info = JobInfo(
            id: spec.jobID, type: spec.work, drive: spec.drive, target: spec.target, state: .created,
            progress: .none,
            speedBytesPerSecond: spec.speedBytesPerSecond, sync: spec.sync, format: spec.format,
            createdAt: clock(), waitsForFinalize: spec.waitsForFinalize, waitsForDismiss: spec.waitsForDismiss
        )
        return Record(
            number: JobNumber(value: lastNumber), spec: spec, control: JobControl(), info: info,
            machine: JobStateMachine(
                waitsForFinalize: spec.waitsForFinalize, drains: spec.work == .backup && spec.sync == .none),
            stop: stop)
    }

    private func checkNotStopping() throws(AgentError) {
        guard !isStopping else {
            throw AgentError(.agentStopping, "The agent is stopping and starts no more jobs")
        }
    }

    /// Waits for the start of a job to succeed or fail; nil when the waiting task is cancelled.
    private func outcome(of number: JobNumber) async -> Result<JobEvent, AgentError>? {
        if let record = records[number] { return await record.start.wait() }
        if let started = ended[number]?.started { return .success(started) }
        return .failure(AgentError(.jobNotFound, "The job is not known any more"))
    }

    /// The start was refused: nothing of the job remains.
    func refuse(_ number: JobNumber, _ error: AgentError) {
        guard let record = records.removeValue(forKey: number) else { return }
        keys.forget(record.spec)
        log.wake(number)
        record.start.fulfil(.failure(record.startRefusal ?? error))
    }

    // MARK: Asking

    /// Jobs that have not been dismissed, oldest first; with `all` the ended ones that are remembered, too.
    package func list(all: Bool) -> [JobInfo] {
        let past = all ? history.compactMap { ended[$0] }.map(\.info) : []
        return past + records.keys.sorted().compactMap { records[$0].map(current) }
    }

    /// The job of this id, or the last one that had it.
    package func get(_ id: String) throws(AgentError) -> JobInfo {
        if let record = live(id) { return current(record) }
        if let number = last(id), let past = ended[number] { return past.info }
        throw Self.notFound(id)
    }

    /// The number of the job of this id, or of the last one that had it.
    package func number(of id: String) throws(AgentError) -> JobNumber {
        if let record = live(id) { return record.number }
        if let number = last(id) { return number }
        throw Self.notFound(id)
    }

    /// Events of a job with higher numbers than `sequence`, and whether all of them are there now and none
    /// will follow.
    package func events(of number: JobNumber, after sequence: UInt64) -> (events: [JobEvent], isEnd: Bool) {
        // Looked at before the log: what is logged later is found next time.
        let past = ended[number]
        let isConcluded = past != nil || records[number] == nil
        var events = log.events(after: sequence, of: number)
        // The log may have dropped the oldest of many events; these two are kept.
        for kept in [past?.started, past?.end] {
            if let kept, kept.sequence > sequence, !events.contains(kept), events.count < 256 {
                events.append(kept)
            }
        }
        events.sort { $0.sequence < $1.sequence }
        let isEnd = events.last?.kind.isEnd ?? isConcluded
        return (events, isEnd)
    }

    private func current(_ record: Record) -> JobInfo {
        var info = record.info
        info.state = record.machine.state
        info.result = record.machine.result
        info.pauseReason = record.machine.pauseReason
        info.error = record.machine.state == .concluded ? record.machine.failure?.error : nil
        if record.started != nil { info.progress = progress(of: record) }
        info.staging = record.started == nil ? nil : record.hold?.staging.usage
        return info
    }

    func progress(of record: Record) -> JobProgress {
        let progress = record.control.progress
        return JobProgress(current: progress.current, total: progress.total)
    }

    private func live(_ id: String) -> Record? { records.values.first { $0.spec.jobID == id } }

    private func last(_ id: String) -> JobNumber? { history.last { ended[$0]?.info.id == id } }

    private static func notFound(_ id: String) -> AgentError {
        AgentError(.jobNotFound, "There is no job \(Identifier.quoted(id))", subject: id)
    }

    // MARK: Verbs

    /// Does what is asked for, or refuses and changes nothing. Returns what the job is then. `isForced` is about cancel: a
    /// job that could end well by it is given up, too.
    package func perform(
        _ verb: JobVerb, on id: String, isForced: Bool = false
    ) async throws(AgentError) -> JobInfo {
        guard let record = live(id) else {
            guard let number = last(id), let past = ended[number] else { throw Self.notFound(id) }
            // It has ended and was dismissed: what it refuses is what a concluded job refuses.
            throw Self.refusal(.wrongState(past.info.state, verb), id: id, verb)
        }
        let number = record.number
        do throws(JobStateMachine.Refusal) {
            guard let effects = try records[number]?.machine.handle(verb, isForced: isForced) else {
                throw .wrongState(.concluded, verb)
            }
            let before = current(record)
            carryOut(effects, number)
            if verb == .pause { await settle(record) }
            guard let after = records[number] else { return ended[number]?.info ?? before }
            return current(after)
        } catch {
            throw Self.refusal(error, id: id, verb)
        }
    }

    /// Changes a job's speed, in bytes a second; 0 is unlimited.
    package func setSpeed(_ speed: Int64, of id: String) async throws(AgentError) -> JobInfo {
        guard speed >= 0 else {
            throw AgentError(
                .fieldInvalid, "The speed \(speed) is negative (0 is unlimited)", subject: "speed")
        }
        let info = try await perform(.setSpeed, on: id)
        guard let record = live(id) else { return info }
        record.control.setSpeed(speed)
        records[record.number]?.info.speedBytesPerSecond = speed
        return try get(id)
    }

    /// Gives a job that was asked to pause a moment for what is in flight, so that the answer is usually
    /// "paused". A target that hangs makes nobody wait.
    private func settle(_ record: Record) async {
        let quiet = OneShot<Void>()
        let waiting = Task {
            if await record.control.quiescent() { quiet.fulfil(()) }
        }
        if await quiet.wait(atMost: .seconds(1)) != nil { report(.quiescent, record.number) }
        waiting.cancel()
    }

    private static func refusal(
        _ refusal: JobStateMachine.Refusal, id: String, _ verb: JobVerb
    ) -> AgentError {
        let why =
            switch refusal {
            case .wrongState(let state, let verb): "in the state \(state.word) a job refuses \(verb.rawValue)"
            case .alreadyPaused: "it is paused already"
            case .notPaused: "it was not paused"
            case .alreadyFinalizing: "it is being finalized already"
            }
        return AgentError(.jobState, "Couldn't \(verb.rawValue) the job \(id): \(why)", subject: id)
    }

    // MARK: What happens

    /// Tells a job's machine what happened and does what follows.
    func report(_ event: JobStateMachine.Event, _ number: JobNumber) {
        // A pause may have been taken back since the report was made.
        if event == .quiescent, records[number]?.control.isQuiescent != true { return }
        guard let effects = records[number]?.machine.handle(event) else { return }
        carryOut(effects, number)
    }

    /// Carries effects out in order: events are logged together, work is set off.
    private func carryOut(_ effects: [JobStateMachine.Effect], _ number: JobNumber) {
        guard let record = records[number] else { return }
        // A job that has not started has no events: a refused start leaves nothing.
        let isVisible = record.started != nil
        var kinds: [JobEvent.Kind] = []
        for effect in effects {
            switch effect {
            case .stateChanged(let state, let previous, let reason):
                kinds.append(.stateChanged(state, previous: previous, pauseReason: reason))
            case .ioError(let error): kinds.append(.ioError(error))
            case .pending: kinds.append(.pending)
            case .pauseCopy:
                record.control.pause()
                watchPause(number)
            case .resumeCopy: record.control.resume()
            case .stopCopy:
                record.control.cancel()
                record.stop.fulfil(())
            case .finishCopy: record.control.finish()
            case .completeTarget: own(number, Task { await self.complete(number) })
            case .abandonTarget: own(number, Task { await self.giveUp(number) })
            case .ended(let result):
                kinds.append(end(result, record))
                if isVisible {
                    let events = log.append(kinds, job: number, id: record.spec.jobID)
                    conclude(number, events)
                }
                kinds = []
            case .dismissed: forget(number)
            }
        }
        guard isVisible, !kinds.isEmpty else { return }
        let events = log.append(kinds, job: number, id: record.spec.jobID)
        if let last = events.last { records[number]?.info.lastSequence = last.sequence }
    }

    private func end(_ result: JobResult, _ record: Record) -> JobEvent.Kind {
        let progress = progress(of: record)
        switch result {
        case .completed, .completedWithErrors: return .completed(progress)
        case .cancelled: return .cancelled(progress)
        case .failed:
            let unknown = AgentError(.ioError, "The job failed for an unknown reason")
            return .failed(records[record.number]?.machine.failure?.error ?? unknown, progress)
        }
    }

    private func conclude(_ number: JobNumber, _ events: [JobEvent]) {
        guard var record = records[number] else { return }
        record.info.lastSequence = events.last?.sequence ?? record.info.lastSequence
        record.info.endedAt = events.last?.time ?? clock()
        record.info.progress = progress(of: record)
        record.target = nil
        records[number] = record
        let info = current(record)
        ended[number] = Ended(info: info, started: record.started, end: events.last)
        logger.info("The job \(info.id) has ended: \(info.result.map { "\($0)" } ?? "?")")
        if let error = info.error { logger.error("The job \(info.id) failed: \(error.message)") }
        if !record.spec.waitsForDismiss { forget(number) }
    }

    /// Frees a concluded job's id and moves it to the history.
    private func forget(_ number: JobNumber) {
        guard records.removeValue(forKey: number) != nil else { return }
        history.append(number)
        if history.count > Self.historyBound { ended[history.removeFirst()] = nil }
    }

    /// Keeps a task of a job until it is done.
    func own(_ number: JobNumber, _ task: Task<Void, Never>) {
        records[number]?.tasks.append(task)
    }

    // MARK: The agent's end

    /// Ends all jobs, as failed, and waits for their ends, but no longer than `limit`. No job starts
    /// afterwards.
    package func stop(within limit: Duration) async {
        isStopping = true
        let reason = AgentError(
            .agentStopping, "The agent was stopped before the job had ended")
        var waiting: [Task<Void, Never>] = []
        for number in records.keys.sorted() {
            records[number]?.startRefusal = reason
            report(.mustFail(JobFailure(error: reason)), number)
            waiting += records[number]?.tasks ?? []
        }
        let done = OneShot<Void>()
        let tasks = waiting
        let waiter = Task {
            for task in tasks { await task.value }
            // Ending the copies sets off the giving up of the targets: these tasks come later.
            for task in self.remainingTasks() { await task.value }
            done.fulfil(())
        }
        _ = await done.wait(atMost: limit)
        waiter.cancel()
    }

    private func remainingTasks() -> [Task<Void, Never>] { records.values.flatMap(\.tasks) }
}
