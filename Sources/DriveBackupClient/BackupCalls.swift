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
}
