public import DriveBackupRPC
public import DriveBackupWire

/// Drives, and drives as they were at a point in time, served over NBD.
public struct ExportCalls: Sendable {
    let client: DriveBackupClient

    /// All exports, by name.
    public func list() async throws(RPCStatus) -> [Export] {
        try await client.call(ExportsMethods.list, ListExportsRequest()).exports
    }

    /// Serves a drive, now and after every restart of the agent.
    ///
    /// - Parameters:
    ///   - address: `unix:PATH` with an absolute path on the agent's host, or `tcp://HOST:PORT` with a loopback address.
    ///     Several exports may be at one address; the first there also answers to the empty name.
    ///   - name: what clients ask for; empty for the drive's id.
    ///   - readOnly: refuse requests that would change something; a drive that is read-only is in any case.
    /// - Throws: `notFound` if there is no such drive, `alreadyExists` if the name is taken, `failedPrecondition` if the
    ///   agent cannot listen there, or another process has the image open and does not allow that it is written.
    public func add(
        drive: String, address: String, name: String = "", readOnly: Bool = false
    ) async throws(RPCStatus) -> Export {
        var request = AddExportRequest()
        request.drive = drive
        request.address = address
        request.name = name
        request.readOnly = readOnly
        return try await client.call(ExportsMethods.add, request)
    }

    /// Serves the drive of a job that runs as it was at the job's point in time, read-only, until the job ends.
    ///
    /// - Parameter name: what clients ask for; empty for the job's id with `-snapshot` behind it.
    /// - Throws: `notFound` if there is no such job, `failedPrecondition` with reason `JOB_STATE` if it has ended.
    public func addSnapshot(
        of job: String, address: String, name: String = ""
    ) async throws(RPCStatus) -> Export {
        var request = AddExportRequest()
        request.snapshotOf = job
        request.address = address
        request.name = name
        return try await client.call(ExportsMethods.add, request)
    }

    /// Serves an export no more and forgets it. Requests that run may end; then its clients are disconnected.
    public func remove(_ name: String) async throws(RPCStatus) {
        var request = RemoveExportRequest()
        request.name = name
        _ = try await client.call(ExportsMethods.remove, request)
    }
}
