public import DriveBackupWire
internal import NIOCore
internal import NIOPosix

/// What a call says beside its request.
public struct CallOptions: Sendable {
    /// How long the caller waits for the end of the call; nil for without end.
    public var timeout: Duration?
    public var metadata: [RPCMetadata]

    public init(timeout: Duration? = nil, metadata: [RPCMetadata] = []) {
        self.timeout = timeout
        self.metadata = metadata
    }
}

/// A client's connection to an agent. Any number of calls can run on it at once.
///
/// When the connection is lost its calls end with `unavailable`, and so does each new one: connect again.
public final class RPCConnection: Sendable {
    private let connection: ClientConnection
    private let loop: LoopExecutor

    init(_ connection: ClientConnection, running executor: LoopExecutor) {
        self.connection = connection
        loop = executor
    }

    deinit { connection.close(RPCStatus(.unavailable, "The connection was closed.")) }

    /// Connects to an agent and waits for its HELLO.
    ///
    /// Throws `unavailable` if nobody is there or nobody answers within `timeout`, and `permissionDenied` if the
    /// system does not let us.
    public static func connect(
        to address: RPCAddress, timeout: Duration = .seconds(10), limits: RPCLimits = RPCLimits()
    ) async throws(RPCStatus) -> RPCConnection {
        var limits = limits
        limits.handshakeTimeout = min(limits.handshakeTimeout, timeout)
        let connection = ClientConnection(limits: limits)
        let executor = try await ChannelTransport.connect(connection, to: address, timeout: timeout)
        let result = RPCConnection(connection, running: executor)
        do throws(RPCStatus) {
            try await connection.ready()
        } catch {
            if error.code == .cancelled { throw error }
            throw RPCStatus(
                .unavailable, "Couldn't talk to the agent at \(address): \(error.message)",
                details: error.details)
        }
        return result
    }

    /// Calls a method that has one response.
    public func call<Request, Response>(
        _ method: RPCMethod<Request, Response>, _ request: Request, options: CallOptions = CallOptions()
    ) async throws(RPCStatus) -> Response {
        let opening = try opening(method, request, isUnary: true, options)
        // Each function that may wait costs a change of executor, so one that need not wait is not called.
        let stream =
            if let stream = try connection.openAtOnce(opening) { stream } else {
                try await connection.open(opening)
            }
        await connection.wait(for: stream)
        return try ClientCall.response(connection.takeAnswer(on: stream, of: method.name))
    }

    /// Calls a method that has any number of responses. Returns when the call has been sent.
    public func stream<Request, Response>(
        _ method: RPCMethod<Request, Response>, _ request: Request, options: CallOptions = CallOptions()
    ) async throws(RPCStatus) -> RPCResponses<Response> {
        let stream = try await connection.open(opening(method, request, isUnary: false, options))
        return RPCResponses(ClientCall(connection, stream: stream, owner: self))
    }

    /// Runs tasks where the connection's bytes arrive and leave, for those that make many calls:
    ///
    /// ```swift
    /// Task(executorPreference: connection.executor) { try await connection.call(…) }
    /// ```
    ///
    /// Their calls need no change of thread, and those that are made at the same time leave together. All calls of the
    /// connection, and maybe other connections, wait while such a task computes.
    public var executor: any TaskExecutor { loop }

    /// How long the agent takes to answer nothing.
    public func ping() async throws(RPCStatus) -> Duration {
        let start = ContinuousClock.now
        try await connection.ping()
        return start.duration(to: .now)
    }

    /// The agent's name and version of its software, as its HELLO says.
    public var software: String { connection.software }

    /// Why no call can be made on this connection any more; nil while calls can be made.
    public var closed: RPCStatus? { connection.closed }

    /// Calls that have not ended.
    public var openCalls: Int { connection.openCalls }

    /// Ends the connection, and its calls with `unavailable`. Returns when the socket is closed.
    public func close() async {
        connection.close(RPCStatus(.unavailable, "The connection was closed."))
        await connection.disconnection()
    }

    private func opening<Request, Response>(
        _ method: RPCMethod<Request, Response>, _ request: Request, isUnary: Bool, _ options: CallOptions
    ) throws(RPCStatus) -> ClientConnection.Opening {
        var frame = Frames.Call()
        frame.method = method.name
        frame.metadata = options.metadata.map(\.frame)
        frame.message = try request.bytesToSend(limit: FrameHeader.maxPayload, what: "request")
        var deadline: Int64?
        if let timeout = options.timeout {
            let nanoseconds = Int64(0).adding(timeout)
            guard nanoseconds > 0 else {
                throw RPCStatus(.deadlineExceeded, "\(method.name) was given no time.")
            }
            frame.timeoutNs = UInt64(nanoseconds)
            deadline = RPCClock.now.adding(timeout)
        }
        let payload = try frame.bytesToSend(limit: connection.maxRequest, what: "request")
        return ClientConnection.Opening(payload: payload, isUnary: isUnary, deadline: deadline)
    }
}
