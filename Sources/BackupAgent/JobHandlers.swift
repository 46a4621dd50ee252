internal import DriveBackupRPC
internal import DriveBackupWire

extension AgentHandlers {
    func addJobs(to router: inout RPCRouter) {
        router.stream(BackupsMethods.start) { (request, context, writer) async throws(RPCStatus) in
            try await start(detach: request.detach, context, writer) { () throws(AgentError) in
                try BackupSpec(request)
            }
        }
        router.stream(BackupsMethods.startGroup) { (request, context, writer) async throws(RPCStatus) in
            let access = access(context)
            let started = try await translate { () async throws(AgentError) in
                try await jobs.start(BackupSpec.group(request), access: access)
            }
            for (_, event) in started {
                await shown(event)
                try await writer.write(event.wire)
            }
            guard !request.detach else { return }
            try await watch(started.map { ($0.job, $0.started.sequence) }, writer)
        }
        router.stream(BackupsMethods.verify) { (request, context, writer) async throws(RPCStatus) in
            try await start(detach: request.detach, context, writer) { () throws(AgentError) in
                try BackupSpec(request)
            }
        }
        router.stream(BackupsMethods.restore) { (request, context, writer) async throws(RPCStatus) in
            try await start(detach: request.detach, context, writer) { () throws(AgentError) in
                try BackupSpec(request)
            }
        }
        router.unary(JobsMethods.list) { (request, _) async throws(RPCStatus) in
            try await translate { () async throws(AgentError) in
                guard !request.all else { return try await jobs.listAll(after: request.afterSequence) }
                return ListJobsResponse(jobs: await jobs.list(all: false).map(\.wire))
            }
        }
        router.unary(JobsMethods.get) { (request, _) async throws(RPCStatus) in
            try await translate { () async throws(AgentError) in try await jobs.show(request.jobID) }
        }
        router.stream(JobsMethods.watch) { (request, _, writer) async throws(RPCStatus) in
            let job = try await translate { () async throws(AgentError) in
                try await jobs.lookUp(request.jobID)
            }
            try await watch(job, after: request.afterSequence, writer)
        }
        addVerbs(to: &router)
    }

    /// Starts a job and reports it until it ends.
    private func start(
        detach: Bool, _ context: RPCContext, _ writer: RPCWriter<DriveBackupWire.JobEvent>,
        _ spec: () throws(AgentError) -> BackupSpec
    ) async throws(RPCStatus) {
        let access = access(context)
        let (job, started) = try await translate { () async throws(AgentError) in
            try await jobs.start(spec(), access: access)
        }
        await shown(started)
        try await writer.write(started.wire)
        if !detach { try await watch(job, after: started.sequence, writer) }
    }

    private func addVerbs(to router: inout RPCRouter) {
        router.unary(JobsMethods.pause) { (request, _) async throws(RPCStatus) in
            try await perform(.pause, on: request.jobID)
        }
        router.unary(JobsMethods.resume) { (request, _) async throws(RPCStatus) in
            try await perform(.resume, on: request.jobID)
        }
        router.unary(JobsMethods.cancel) { (request, _) async throws(RPCStatus) in
            try await perform(.cancel, on: request.jobID, isForced: request.force)
        }
        router.unary(JobsMethods.finalize) { (request, _) async throws(RPCStatus) in
            try await perform(.finalize, on: request.jobID)
        }
        router.unary(JobsMethods.dismiss) { (request, _) async throws(RPCStatus) in
            try await perform(.dismiss, on: request.jobID)
        }
        router.unary(JobsMethods.setSpeed) { (request, _) async throws(RPCStatus) in
            try await translate { () async throws(AgentError) in
                try await jobs.setSpeed(request.speed, of: request.jobID).wire
            }
        }
    }

    private func perform(
        _ verb: JobVerb, on id: String, isForced: Bool = false
    ) async throws(RPCStatus) -> DriveBackupWire.Job {
        try await translate { () async throws(AgentError) in
            try await jobs.perform(verb, on: id, isForced: isForced).wire
        }
    }

    /// Waits until the event may be seen.
    private func shown(_ event: JobEvent) async {
        if event.sequence > log.lastSequence {
            await log.waitForEvent(after: event.sequence - 1, of: event.job)
        }
    }

    /// The events of several jobs, each after a number, until the last one of each, in the order of their numbers.
    private func watch(
        _ numbers: [(job: JobNumber, sequence: UInt64)], _ writer: RPCWriter<DriveBackupWire.JobEvent>
    ) async throws(RPCStatus) {
        var running = numbers
        while !running.isEmpty {
            let isClosed = log.isClosed
            // Looked at before the jobs: what is logged later wakes the wait below.
            let horizon = log.lastSequence
            var events: [DriveBackupWire.JobEvent] = []
            var going: [(job: JobNumber, sequence: UInt64)] = []
            for (job, sequence) in running {
                let (found, isEnd) = await jobs.watch(job, after: sequence)
                // What is beyond would be out of order with the others'.
                let due = found.filter { $0.sequence <= horizon }
                events += due
                let last = due.last?.sequence ?? sequence
                if !isEnd || due.count < found.count { going.append((job, last)) }
            }
            running = going
            try await writer.write(contentsOf: events.sorted { $0.sequence < $1.sequence })
            guard events.isEmpty else { continue }
            if isClosed { throw AgentError(.agentStopping, "The agent is stopping").status }
            try checkNotCancelled()
            await log.waitForEvent(after: horizon)
        }
    }

    /// A job's events until its last one. A slow reader costs a number: what it has not read stays in the
    /// log, and in the history.
    private func watch(
        _ job: JobNumber, after sequence: UInt64, _ writer: RPCWriter<DriveBackupWire.JobEvent>
    ) async throws(RPCStatus) {
        var last = sequence
        while true {
            let isClosed = log.isClosed
            let horizon = log.lastSequence
            let (events, isEnd) = await jobs.watch(job, after: last)
            try await writer.write(contentsOf: events)
            last = events.last?.sequence ?? last
            if isEnd { return }
            guard events.isEmpty else { continue }
            if isClosed { throw AgentError(.agentStopping, "The agent is stopping").status }
            try checkNotCancelled()
            // There was nothing up to the horizon.
            last = max(last, horizon)
            await log.waitForEvent(after: last, of: job)
        }
    }
}
