public import DriveBackupRPC
public import DriveBackupWire

/// The agent itself, and everything that happens in it.
public struct AgentCalls: Sendable {
    let client: DriveBackupClient

    /// Who the agent is and how it does.
    public func info() async throws(RPCStatus) -> AgentInfo {
        try await client.call(AgentMethods.getInfo, GetInfoRequest())
    }

    /// The events of all jobs with a sequence number above `sequence`, oldest first.
    ///
    /// - Parameters:
    ///   - sequence: the last event that is known already; 0 for all that the agent still has.
    ///   - follow: go on with events as they happen, without end; otherwise end with the last there is.
    public func events(after sequence: UInt64 = 0, follow: Bool = true) async throws(RPCStatus)
        -> RPCResponses<JobEvent>
    {
        var request = WatchEventsRequest()
        request.afterSequence = sequence
        request.noFollow = !follow
        return try await client.stream(AgentMethods.watchEvents, request)
    }
}
