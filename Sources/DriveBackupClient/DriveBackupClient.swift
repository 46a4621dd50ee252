public import DriveBackupRPC
internal import DriveBackupWire

/// A connection to one agent, and its methods as Swift calls.
///
/// ```swift
/// let agent = try await DriveBackupClient.connect(to: RPCAddress(parsing: "unix:/run/drive-backup/agent.sock"))
/// var request = BackupRequest()
/// request.drive = "vm1"
/// request.target = "/backup/vm1.qcow2"
/// request.sync = .full
/// for try await event in try await agent.backups.start(request) {
///     if case .completed = event.event { print("vm1 is safe") }
/// }
/// await agent.close()
/// ```
///
/// Any number of calls may run at once. Each throws an `RPCStatus`: `code` says what kind of failure it is, `reason`
/// which one exactly (docs/protocol.md lists them), `message` says it to people. A call ends with `unavailable` when
/// the connection is lost; jobs go on without it. Cancelling the task of a call cancels the call, never a job.
public final class DriveBackupClient: Sendable {
    /// Where the agent is.
    public let address: RPCAddress
    /// How long a call of one answer may take; nil for as long as it takes. Streams have no limit.
    public let timeout: Duration?

    let connection: RPCConnection

    /// Uses a connection that exists, for example one to a router in the same process.
    public init(connection: RPCConnection, address: RPCAddress, timeout: Duration? = .seconds(60)) {
        self.connection = connection
        self.address = address
        self.timeout = timeout
    }

    /// Connects to the agent at `address`.
    ///
    /// - Parameters:
    ///   - connectTimeout: how long connecting and the first greeting may take.
    ///   - timeout: how long each call of one answer may take.
    /// - Throws: `unavailable` if nobody answers there.
    public static func connect(
        to address: RPCAddress, connectTimeout: Duration = .seconds(10), timeout: Duration? = .seconds(60)
    ) async throws(RPCStatus) -> DriveBackupClient {
        let connection = try await RPCConnection.connect(to: address, timeout: connectTimeout)
        return DriveBackupClient(connection: connection, address: address, timeout: timeout)
    }

    /// The agent itself, and everything that happens in it.
    public var agent: AgentCalls { AgentCalls(client: self) }
    /// The named disks that the agent has open.
    public var drives: DriveCalls { DriveCalls(client: self) }
    /// Drives and points in time that are served over NBD.
    public var exports: ExportCalls { ExportCalls(client: self) }
    /// Running and ended operations.
    public var jobs: JobCalls { JobCalls(client: self) }
    /// Starting backups.
    public var backups: BackupCalls { BackupCalls(client: self) }

    /// Closes the connection. Calls that still run end with `unavailable`.
    public func close() async { await connection.close() }

    func call<Request, Response>(
        _ method: RPCMethod<Request, Response>, _ request: Request
    ) async throws(RPCStatus) -> Response {
        try await connection.call(method, request, options: CallOptions(timeout: timeout))
    }

    func stream<Request, Response>(
        _ method: RPCMethod<Request, Response>, _ request: Request
    ) async throws(RPCStatus) -> RPCResponses<Response> {
        try await connection.stream(method, request, options: CallOptions())
    }
}

/// The version of this library and of the command `drive-backup`.
public let clientVersion = "0.1.0"
