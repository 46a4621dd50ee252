public import DriveBackupRPC
public import DriveBackupWire

/// Starting backups.
public struct BackupCalls: Sendable {
    let client: DriveBackupClient

    /// Starts a backup and reports it until the job ends; with `detach` until its first event.
    ///
    /// The first event is `started`, sent when the point in time is fixed: what was written before the call is in the
    /// backup, what is written after this event is not. A refused start throws and has touched nothing. If the
    /// connection is lost afterwards the job goes on, and `JobEvents` takes its events up again; if it is lost before,
    /// the same request with the same `requestKey` finds out what became of it.
    public func start(_ request: BackupRequest) async throws(RPCStatus) -> RPCResponses<JobEvent> {
        try await client.stream(BackupsMethods.start, request)
    }

    /// Starts backups of several drives at one point in time, all of them or none, and reports them until all jobs have
    /// ended; with `detach` until all have started.
    ///
    /// The first events are the jobs' `started`, with the same `pointInTime`. A refused start throws and has touched
    /// nothing. `JobEvents` takes up the events of each job after a lost connection.
    public func startGroup(_ request: StartGroupRequest) async throws(RPCStatus) -> RPCResponses<JobEvent> {
        try await client.stream(BackupsMethods.startGroup, request)
    }

    /// Reads a backup back and compares it with its manifest, as a job, which is reported until it ends; with `detach` until
    /// its first event. Each damaged range is an `io_error` event; a job that has found damage fails with BACKUP_DAMAGED.
    public func verify(_ request: VerifyRequest) async throws(RPCStatus) -> RPCResponses<JobEvent> {
        try await client.stream(BackupsMethods.verify, request)
    }

    /// Writes a backup, with what it lies on, to a new image or to a drive that nobody has open, as a job, which is reported
    /// until it ends; with `detach` until its first event. What is read is compared with the manifest before a new image
    /// gets its name.
    public func restore(_ request: RestoreRequest) async throws(RPCStatus) -> RPCResponses<JobEvent> {
        try await client.stream(BackupsMethods.restore, request)
    }
}
