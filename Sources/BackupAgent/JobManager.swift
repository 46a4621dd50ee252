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
        /// What the client who started it may use.
        let access: PathAccess
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
        var errors = JobErrors()
        /// What the data path has told, and nobody has taken up.
        let inbox = ErrorInbox()
        /// `info.missing` is as the job would tell it.
        var isMissingKnown = true
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
        /// By which the next agent knows again what is copied, and the target where that is a file; set before the job
        /// starts.
        var known: (drive: StoredJob.DriveFile, target: TargetSpec.Resumption?)?
        /// The target is durable and what is left is its name; the next agent is told so.
        var isDecided = false
        /// Its completion was set off: that happens once.
        var isCompleting = false

        /// The next agent goes on with the job.
        var goesOn: Bool { spec.work == .backup && known?.target != nil }
    }

    /// What is left of a job that has ended.
    struct Ended {
        var info: JobInfo
        var started: JobEvent?
        var end: JobEvent?
    }

    /// How many ended jobs stay in memory; the history has more.
    static let historyBound = 256

    let drives: DriveRegistry
    /// Where points in time are exported; nil in tests that have none.
    let exports: ExportRegistry?
    let targets: any TargetOpener
    let files: JobFiles
    let buffers: BufferPool
    let log: EventLog
    /// nil in tests that keep nothing.
    let history: JobHistory?
    let clock: @Sendable () -> Int64
    let logger: Logger
    private let onEnd: @Sendable (JobInfo) -> Void
    /// Where jobs are kept over restarts; nil in tests that have none.
    let store: StateStore?
    var saving = Saving()
    /// The removals of jobs' files that are under way; the jobs may have ended.
    var removals: [JobNumber: Task<Void, Never>] = [:]

    var records: [JobNumber: Record] = [:]
    /// The last ended jobs; those of `dismissed` are not in `records` any more.
    var ended: [JobNumber: Ended] = [:]
    private var dismissed: [JobNumber] = []
    var keys: RequestKeys
    var lastNumber: UInt64
    private var reservedNumber: UInt64
    var isStopping = false
    /// Targets are being closed in the midst of jobs: what comes of that is nothing that a job would end by.
    var isLeaving = false

    /// - Parameter onEnd: called for each job that ends, in one step with its end; must not wait.
    package init(
        drives: DriveRegistry, exports: ExportRegistry? = nil, targets: any TargetOpener, files: JobFiles,
        buffers: BufferPool, log: EventLog, history: JobHistory? = nil, store: StateStore? = nil,
        clock: @escaping @Sendable () -> Int64 = WallClock.now, logger: Logger,
        onEnd: @escaping @Sendable (JobInfo) -> Void = { _ in }
    ) {
        self.drives = drives
        self.exports = exports
        self.targets = targets
        self.files = files
        self.buffers = buffers
        self.log = log
        self.history = history
        self.store = store
        self.clock = clock
        self.logger = logger
        self.onEnd = onEnd
        keys = RequestKeys(history?.keys ?? [])
        lastNumber = history?.lastNumber ?? 0
        reservedNumber = history?.reservedNumber ?? 0
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
        if let known = try keys.jobs(for: specs, now: clock()) {
            if await areKnown(known) { return known }
            for spec in specs { keep(keys.forget(spec, jobs: known)) }
        }
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
        let group = specs.count > 1 || specs.contains(where: \.isGrouped) ? "group-\(lastNumber + 1)" : ""
        let numbers = specs.map { spec in
            let record = makeRecord(spec, access, stop, group: group)
            records[record.number] = record
            return record.number
        }
        keep(keys.remember(specs, jobs: numbers, now: clock()))
        let task = Task { await self.run(numbers, access) }
        for number in numbers { own(number, task) }
        return numbers
    }

    private func makeRecord(
        _ spec: BackupSpec, _ access: PathAccess, _ stop: OneShot<Void>, group: String
    ) -> Record {
        lastNumber += 1
        if lastNumber + JobHistory.reservation / 2 > reservedNumber {
            reservedNumber = lastNumber + JobHistory.reservation
            history?.writer.reserve(job: reservedNumber)
        }
        var info = JobInfo(
            id: spec.jobID, type: spec.work, drive: spec.drive, target: spec.target, state: .created,
            progress: .none,
            speedBytesPerSecond: spec.speedBytesPerSecond, sync: spec.sync, format: spec.format,
            createdAt: clock(), waitsForFinalize: spec.waitsForFinalize,
            waitsForDismiss: spec.waitsForDismiss,
            onSourceError: spec.onSourceError, onTargetError: spec.onTargetError)
        info.group = group
        info.isGrouped = spec.isGrouped
        return Record(
            number: JobNumber(value: lastNumber), spec: spec, access: access, control: JobControl(),
            info: info,
            machine: JobStateMachine(
                waitsForFinalize: spec.waitsForFinalize, drains: spec.work == .backup && spec.sync == .none,
                isGrouped: spec.isGrouped),
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
        if let started = await keptStart(of: number) { return .success(started) }
        return .failure(AgentError(.jobNotFound, "The job is not known any more"))
    }

    /// The start was refused: nothing of the job remains.
    func refuse(_ number: JobNumber, _ error: AgentError) {
        guard let record = records.removeValue(forKey: number) else { return }
        if record.known != nil { save(number) }
        keep(keys.forget(record.spec, jobs: [number]))
        log.wake(number)
        record.start.fulfil(.failure(record.startRefusal ?? error))
    }

    // MARK: Asking

    /// Jobs that have not been dismissed, oldest first; with `all` the last ended ones, too.
    package func list(all: Bool) -> [JobInfo] {
        let past = all ? dismissed.compactMap { self.past($0) } : []
        return past + records.keys.sorted().compactMap { records[$0].map(current) }
    }

    /// The job of this id, or the last one that had it.
    package func get(_ id: String) throws(AgentError) -> JobInfo {
        if let record = live(id) { return current(record) }
        if let number = last(id), let past = past(number) { return past }
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
        let horizon = log.lastSequence
        let isConcluded = past.map { $0.info.lastSequence <= horizon } ?? (records[number] == nil)
        var events = log.events(after: sequence, of: number)
        // The log may have dropped the oldest of many events; these two are kept.
        for kept in [past?.started ?? records[number]?.started, past?.end] {
            if let kept, kept.sequence > sequence, kept.sequence <= horizon, !events.contains(kept),
                events.count < 256
            {
                events.append(kept)
            }
        }
        events.sort { $0.sequence < $1.sequence }
        let isEnd = events.last?.kind.isEnd ?? isConcluded
        return (events, isEnd)
    }

    func current(_ record: Record) -> JobInfo {
        var info = record.info
        info.state = record.machine.state
        info.result = record.machine.result
        info.pauseReason = record.machine.pauseReason
        info.pauseError = info.pauseReason == .error ? record.machine.pauseError : nil
        info.errorCount = record.errors.count
        info.errors = record.errors.last
        info.error = record.machine.state == .concluded ? record.machine.failure?.error : nil
        if record.started != nil { info.progress = progress(of: record) }
        info.staging = record.started == nil ? nil : record.hold?.staging.usage
        info.targetBusy = record.target?.busy ?? targets.busy(record.number)
        if record.hold?.record?.isCloned == true { info.isCloned = true }
        return info
    }

    /// A job that was dismissed, of which a process may still be there.
    private func past(_ number: JobNumber) -> JobInfo? {
        var info = ended[number]?.info
        info?.targetBusy = targets.busy(number)
        return info
    }

    func progress(of record: Record) -> JobProgress {
        let progress = record.control.progress
        return JobProgress(current: progress.current, total: progress.total)
    }

    func live(_ id: String) -> Record? { records.values.first { $0.spec.jobID == id } }

    func last(_ id: String) -> JobNumber? { dismissed.last { ended[$0]?.info.id == id } }

    /// Whether memory has the job, running or ended.
    func isInMemory(_ number: JobNumber) -> Bool { records[number] != nil || ended[number] != nil }

    /// The jobs that have ended and are in memory, oldest first.
    var endedInMemory: [(number: JobNumber, info: JobInfo)] {
        ended.keys.sorted().compactMap { number in ended[number].map { (number, $0.info) } }
    }

    static func notFound(_ id: String) -> AgentError {
        AgentError(
            .jobNotFound, "There is no job \(Identifier.quoted(id)) ('job list --all' shows them)",
            subject: id)
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
    func carryOut(_ effects: [JobStateMachine.Effect], _ number: JobNumber) {
        guard !effects.isEmpty, let record = records[number] else { return }
        defer {
            save(number)
            groupChanged(number)
        }
        // A job that has not started has no events: a refused start leaves nothing.
        let isVisible = record.started != nil
        var kinds: [JobEvent.Kind] = []
        for effect in effects {
            switch effect {
            case .stateChanged(let state, let previous, let reason, let error):
                // Errors come before what they lead to.
                kinds += (records[number]?.errors.takePending(now: clock()) ?? []).map { .ioError($0) }
                kinds.append(
                    .stateChanged(state, previous: previous, pauseReason: reason, pauseError: error))
            case .ioError(let error):
                kinds += (records[number]?.errors.noteLast(error, now: clock()) ?? []).map { .ioError($0) }
            case .pending: kinds.append(.pending)
            case .pauseCopy:
                record.control.pause()
                watchPause(number)
            case .resumeCopy: record.control.resume()
            case .stopCopy:
                record.control.cancel()
                record.stop.fulfil(())
            case .finishCopy: record.control.finish()
            case .completeTarget: setOffCompletion(number)
            // What is decided for a group is not taken back for one of it.
            case .abandonTarget where record.isDecided && record.spec.isGrouped: break
            case .abandonTarget: own(number, Task { await self.giveUp(number) })
            case .ended(let result):
                kinds.append(end(result, record))
                if isVisible { conclude(number, kinds) }
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
        case .completed, .completedWithErrors:
            return .completed(progress, missing: records[record.number]?.info.missing ?? BackupJob.Missing())
        case .cancelled: return .cancelled(progress)
        case .failed:
            let unknown = AgentError(.ioError, "The job failed for an unknown reason")
            return .failed(records[record.number]?.machine.failure?.error ?? unknown, progress)
        }
    }

    /// Tells of a job's end, and keeps what is left of it in the same step.
    private func conclude(_ number: JobNumber, _ kinds: [JobEvent.Kind]) {
        guard var record = records[number] else { return }
        var info = current(record)
        // That of a new target goes with it; the name may be that of an older backup's.
        if info.result == .cancelled || info.result == .failed, record.spec.work == .backup,
            record.spec.mode != .existing
        {
            info.manifest = ""
        }
        let events = log.append(kinds, job: number, id: record.spec.jobID) { events in
            info.lastSequence = events.last?.sequence ?? info.lastSequence
            info.endedAt = events.last?.time ?? 0
            return .ended(number, info)
        }
        record.info = info
        record.target = nil
        records[number] = record
        ended[number] = Ended(info: info, started: record.started, end: events.last)
        logger.info("The job \(info.id) has ended: \(info.result.map { "\($0)" } ?? "?")")
        if let error = info.error { logger.error("The job \(info.id) failed: \(error.message)") }
        onEnd(info)
        if !record.spec.waitsForDismiss { forget(number) }
        // An idle agent keeps no memory for jobs.
        if records.values.allSatisfy({ $0.machine.state == .concluded }) { buffers.rest() }
    }

    /// Frees a concluded job's id and moves it to the ended ones.
    private func forget(_ number: JobNumber) {
        guard records.removeValue(forKey: number) != nil else { return }
        dismissed.append(number)
        if dismissed.count > Self.historyBound { ended[dismissed.removeFirst()] = nil }
    }

    /// Keeps a task of a job until it is done.
    func own(_ number: JobNumber, _ task: Task<Void, Never>) {
        records[number]?.tasks.append(task)
    }
}
