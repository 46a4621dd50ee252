internal import DriveBackupRPC
internal import DriveBackupWire

extension AgentHandlers {
    func addJobs(to router: inout RPCRouter) {
        router.stream(BackupsMethods.start) { (request, context, writer) async throws(RPCStatus) in
            let access = access(context)
            let (job, started) = try await translate { () async throws(AgentError) in
                try await jobs.start(BackupSpec(request), access: access)
            }
            try await writer.write(started.wire)
            if !request.detach { try await watch(job, after: started.sequence, writer) }
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

    private func addVerbs(to router: inout RPCRouter) {
        router.unary(JobsMethods.pause) { (request, _) async throws(RPCStatus) in
            try await perform(.pause, on: request.jobID)
        }
        router.unary(JobsMethods.resume) { (request, _) async throws(RPCStatus) in
            try await perform(.resume, on: request.jobID)
        }
        // `force` matters for jobs that drain, which there are none of yet.
        router.unary(JobsMethods.cancel) { (request, _) async throws(RPCStatus) in
            try await perform(.cancel, on: request.jobID)
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

    private func perform(_ verb: JobVerb, on id: String) async throws(RPCStatus) -> DriveBackupWire.Job {
        try await translate { () async throws(AgentError) in try await jobs.perform(verb, on: id).wire }
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
