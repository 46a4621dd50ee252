public import DriveBackupRPC
public import DriveBackupWire

/// Running and ended operations.
///
/// Each verb answers with the job as it is afterwards, throws `notFound` if there is no job of that id, and
/// `failedPrecondition` with reason `JOB_STATE` if the job's state does not permit it.
public struct JobCalls: Sendable {
    let client: DriveBackupClient

    /// The jobs that have not been dismissed, oldest first; with `all` before them the ended ones that the agent remembers,
    /// in the order of their ends, all in one array.
    public func list(all: Bool = false) async throws(RPCStatus) -> [Job] {
        var request = ListJobsRequest()
        request.all = all
        var jobs: [Job] = []
        while true {
            let response = try await client.call(JobsMethods.list, request)
            jobs += response.jobs
            // An agent that says that there is more, and gives nothing new, has nothing more to say.
            guard response.more, let last = response.jobs.last?.lastSequence, last > request.afterSequence
            else {
                return jobs
            }
            request.afterSequence = last
        }
    }

    /// One job; the last of that id if it has been dismissed.
    public func get(_ id: String) async throws(RPCStatus) -> Job {
        var request = GetJobRequest()
        request.jobID = id
        return try await client.call(JobsMethods.get, request)
    }

    /// What happened to a job after the event numbered `sequence`, then what happens; ends with the job, and with
    /// `unavailable` when the connection is lost. `JobEvents` goes on after that.
    public func watch(_ id: String, after sequence: UInt64 = 0) async throws(RPCStatus) -> RPCResponses<
        JobEvent
    > {
        var request = WatchJobRequest()
        request.jobID = id
        request.afterSequence = sequence
        return try await client.stream(JobsMethods.watch, request)
    }

    /// Stops background copying until `resume`.
    public func pause(_ id: String) async throws(RPCStatus) -> Job {
        var request = PauseJobRequest()
        request.jobID = id
        return try await client.call(JobsMethods.pause, request)
    }

    /// Goes on after `pause`.
    public func resume(_ id: String) async throws(RPCStatus) -> Job {
        var request = ResumeJobRequest()
        request.jobID = id
        return try await client.call(JobsMethods.resume, request)
    }

    /// Gives the job up. Answered at once; the job is cancelled when its last event says so.
    ///
    /// For a job of sync mode `none` this is the good end: what was saved is copied, the target completed, and the last
    /// event is `completed`. A second cancel, or one with `force`, gives it up.
    public func cancel(_ id: String, force: Bool = false) async throws(RPCStatus) -> Job {
        var request = CancelJobRequest()
        request.jobID = id
        request.force = force
        return try await client.call(JobsMethods.cancel, request)
    }

    /// Changes the limit of background copying.
    ///
    /// - Parameter bytesPerSecond: not negative; 0 is unlimited.
    public func setSpeed(_ id: String, bytesPerSecond: Int64) async throws(RPCStatus) -> Job {
        var request = SetSpeedRequest()
        request.jobID = id
        request.speed = bytesPerSecond
        return try await client.call(JobsMethods.setSpeed, request)
    }

    /// Ends a pending job.
    public func finalize(_ id: String) async throws(RPCStatus) -> Job {
        var request = FinalizeJobRequest()
        request.jobID = id
        return try await client.call(JobsMethods.finalize, request)
    }

    /// Forgets a concluded job and frees its id.
    public func dismiss(_ id: String) async throws(RPCStatus) -> Job {
        var request = DismissJobRequest()
        request.jobID = id
        return try await client.call(JobsMethods.dismiss, request)
    }
}
