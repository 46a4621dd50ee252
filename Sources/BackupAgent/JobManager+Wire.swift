internal import DriveBackupWire

// What the manager tells of jobs that memory has no more: the history has them as the wire has them.

extension JobManager {
    /// How many jobs, and how many bytes of them, an answer has at most.
    private static let page = (jobs: 256, bytes: 1 << 20)

    /// A job of an earlier time.
    typealias Kept = (number: JobNumber, job: DriveBackupWire.Job)

    /// Adds changes of request keys to what is kept.
    func keep(_ changes: [RequestKeys.Change]) { history?.writer.add(changes.map { .key($0) }) }

    /// Whether all the jobs are still known, running or ended.
    func areKnown(_ numbers: [JobNumber]) async -> Bool {
        for number in numbers where !isInMemory(number) {
            guard await history?.read({ store throws(AgentError) in try await store.job(number) }) != nil
            else {
                return false
            }
        }
        return true
    }

    /// The last job of this id that the history has.
    func kept(_ id: String) async throws(AgentError) -> Kept? {
        guard let history, let found = try await history.store.job(id) else { return nil }
        return (found.number, try Self.decoded(found.body))
    }

    /// The `started` event of a job that the history has.
    func keptStart(of number: JobNumber) async -> JobEvent? {
        let first = await history?.read { store throws(AgentError) in
            try await store.events(after: 0, through: .max, of: number, limit: 16)
        }
        for body in first ?? [] {
            // What cannot be read is told when the job's events are asked for.
            guard let event = try? Self.decoded(body) as DriveBackupWire.JobEvent,
                case .started(let started) = event.event
            else { continue }
            return JobEvent(
                sequence: event.sequence, time: event.time, job: number, jobID: event.jobID,
                kind: .started(JobEvent.Started(started)))
        }
        return nil
    }

    /// The job of this id, or the last one that had it, however long ago.
    func show(_ id: String) async throws(AgentError) -> DriveBackupWire.Job {
        let inMemory: AgentError
        do throws(AgentError) { return try get(id).wire } catch { inMemory = error }
        if let kept = try await kept(id) { return kept.job }
        // It may have started, or ended, while the history was read.
        if let info = try? get(id) { return info.wire }
        throw inMemory
    }

    /// The number of the job of this id, or of the last one that had it, however long ago.
    func lookUp(_ id: String) async throws(AgentError) -> JobNumber {
        // Memory is asked first; what it says of one it does not have is said below.
        if let number = try? number(of: id) { return number }
        if let kept = try await kept(id) { return kept.number }
        return try number(of: id)
    }

    /// A page of ended jobs with last events after `sequence`, in the order of their ends; behind the last page the jobs
    /// that have not been dismissed.
    func listAll(after sequence: UInt64) async throws(AgentError) -> ListJobsResponse {
        let limit = Self.page.jobs + 1
        var response = ListJobsResponse()
        var numbers: Set<JobNumber> = []
        var bytes = 0
        // Read first: what ends meanwhile is in memory.
        var (kept, last): ([(number: JobNumber, body: [UInt8])], UInt64) = ([], sequence)
        repeat {
            let before = last
            kept = try await history?.store.jobs(after: before, limit: limit) ?? []
            for (number, body) in kept {
                if response.jobs.count == Self.page.jobs || bytes > Self.page.bytes {
                    response.more = true
                    return response
                }
                let job: DriveBackupWire.Job = try Self.decoded(body)
                last = max(last, job.lastSequence)
                // One that has not been dismissed is told at the end.
                guard records[number] == nil else { continue }
                numbers.insert(number)
                bytes += body.count
                response.jobs.append(job)
            }
            guard last > before else { break }
        } while kept.count == limit
        // Those that the history does not have yet, or could not be given.
        for (number, info) in endedInMemory
        where info.lastSequence > sequence && records[number] == nil && !numbers.contains(number) {
            response.jobs.append(info.wire)
        }
        response.jobs.sort { $0.lastSequence < $1.lastSequence }
        response.jobs += list(all: false).map(\.wire)
        return response
    }

    /// What those who watch a job of the agent before know: the state that they were told last, and the number of the job's
    /// last event. nil where that is not known.
    func lastChange(
        of number: JobNumber
    ) async -> (state: JobState, pauseReason: PauseReason?, sequence: UInt64)? {
        let found = await history?.read { store throws(AgentError) in
            try await store.lastEvent("state_changed", of: number)
        }
        guard let history, let found else { return nil }
        do throws(AgentError) {
            let event: DriveBackupWire.JobEvent = try Self.decoded(found.body)
            guard let change = event.stateChanged, let state = JobState(rawValue: change.state.rawValue)
            else {
                return nil
            }
            return (state, PauseReason(rawValue: change.pauseReason.rawValue), found.sequence)
        } catch {
            history.problems.raise(.reading, error.message)
            return nil
        }
    }

    /// A job's events after `sequence`, and whether all of them are there now and none will follow.
    func watch(
        _ number: JobNumber, after sequence: UInt64
    ) async -> (events: [DriveBackupWire.JobEvent], isEnd: Bool) {
        while true {
            let (older, boundary) = await keptEvents(after: sequence, of: number)
            guard older.isEmpty else { return (older, older.last?.isEnd ?? false) }
            let (events, isEnd) = self.events(of: number, after: sequence)
            // Otherwise some have left memory for the history since it was asked.
            if log.boundary == boundary { return (events.map(\.wire), isEnd) }
        }
    }

    /// The events of all jobs after `sequence` that may be seen; a page, oldest first.
    nonisolated func watchAll(after sequence: UInt64) async -> [DriveBackupWire.JobEvent] {
        while true {
            let (older, boundary) = await keptEvents(after: sequence)
            guard older.isEmpty else { return older }
            let events = log.events(after: sequence)
            // As above.
            if log.boundary == boundary { return events.map(\.wire) }
        }
    }

    /// A page of the events after `sequence` that memory has no more, of one job where it is given, oldest first; and the
    /// number behind which memory has all.
    private nonisolated func keptEvents(
        after sequence: UInt64, of job: JobNumber? = nil
    ) async -> (events: [DriveBackupWire.JobEvent], boundary: UInt64) {
        let boundary = log.boundary
        guard sequence < boundary, let history else { return ([], boundary) }
        let limit = 256
        let bodies =
            await history.read { store throws(AgentError) in
                try await store.events(after: sequence, through: boundary, of: job, limit: limit)
            } ?? []
        var events: [DriveBackupWire.JobEvent] = []
        for body in bodies {
            do throws(AgentError) { events.append(try Self.decoded(body)) } catch {
                history.problems.raise(.reading, error.message)
            }
        }
        // Nothing older is left: memory tells the rest, progress included.
        guard let last = events.last else { return ([], boundary) }
        let end = bodies.count == limit ? last.sequence : boundary
        events += log.progress(after: sequence, through: end, of: job).map(\.wire)
        return (events.sorted { $0.sequence < $1.sequence }, boundary)
    }

    private static func decoded<Message: WireMessage>(_ body: [UInt8]) throws(AgentError) -> Message {
        do throws(WireError) { return try Message.decode(body, limits: .response) } catch {
            throw AgentError(.stateDamaged, "An entry of the history cannot be understood: \(error)")
        }
    }
}

extension DriveBackupWire.JobEvent {
    /// Nothing follows this event in its job's life.
    var isEnd: Bool {
        switch event {
        case .completed, .failed, .cancelled: true
        default: false
        }
    }
}
