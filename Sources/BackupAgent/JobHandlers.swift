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
            for (_, event) in started { try await writer.write(event.wire) }
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
            var response = ListJobsResponse()
            response.jobs = await jobs.list(all: request.all).map(\.wire)
            return response
        }
        router.unary(JobsMethods.get) { (request, _) async throws(RPCStatus) in
            try await translate { () async throws(AgentError) in try await jobs.get(request.jobID).wire }
        }
        router.stream(JobsMethods.watch) { (request, _, writer) async throws(RPCStatus) in
            let job = try await translate { () async throws(AgentError) in
                try await jobs.number(of: request.jobID)
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

    /// The events of several jobs, each after a number, until the last one of each, in the order of their numbers.
    private func watch(
        _ numbers: [(job: JobNumber, sequence: UInt64)], _ writer: RPCWriter<DriveBackupWire.JobEvent>
    ) async throws(RPCStatus) {
        var running = numbers
        while !running.isEmpty {
            let isClosed = log.isClosed
            // Looked at before the jobs: what is logged later wakes the wait below.
            let horizon = log.lastSequence
            var events: [JobEvent] = []
            var going: [(job: JobNumber, sequence: UInt64)] = []
            for (job, sequence) in running {
                let (found, isEnd) = await jobs.events(of: job, after: sequence)
                // What is beyond would be out of order with the others'.
                let due = found.filter { $0.sequence <= horizon }
                events += due
                let last = due.last?.sequence ?? sequence
                if !isEnd || due.count < found.count { going.append((job, last)) }
            }
            running = going
            for event in events.sorted(by: { $0.sequence < $1.sequence }) {
                try await writer.write(event.wire)
            }
            guard events.isEmpty else { continue }
            if isClosed { throw AgentError(.agentStopping, "The agent is stopping").status }
            try checkNotCancelled()
            await log.waitForEvent(after: horizon)
        }
    }

    /// A job's events until its last one. A slow reader costs a number: what it has not read stays in the
    /// log.
    private func watch(
        _ job: JobNumber, after sequence: UInt64, _ writer: RPCWriter<DriveBackupWire.JobEvent>
    ) async throws(RPCStatus) {
        var last = sequence
        while true {
            let isClosed = log.isClosed
            let (events, isEnd) = await jobs.events(of: job, after: last)
            for event in events {
                try await writer.write(event.wire)
                last = event.sequence
            }
            if isEnd { return }
            guard events.isEmpty else { continue }
            if isClosed { throw AgentError(.agentStopping, "The agent is stopping").status }
            try checkNotCancelled()
            await log.waitForEvent(after: last, of: job)
        }
    }
}
