public import DriveBackupWire

/// The methods that a server answers, each with its handler.
///
/// A handler runs in a task of its own, which is cancelled when the caller cancels, when its deadline passes and
/// when the connection ends. What it throws is the call's status.
///
/// The task begins at once, on the connection's event loop, and goes on in Swift's pool once it has waited for
/// something. So a handler that need not wait is answered together with all other calls that have arrived, without a
/// change of thread; what takes long or blocks belongs behind an `await` that leaves the loop.
public struct RPCRouter: Sendable {
    /// Decodes a request, or says why it cannot be; what it returns runs the handler.
    typealias Entry = @Sendable (_ request: [UInt8]) throws(RPCStatus) -> Handler
    enum Handler: Sendable {
        /// Returns the one response, encoded. The limit is the largest that the client takes, in bytes.
        case unary(@Sendable (RPCContext, _ limit: Int) async throws(RPCStatus) -> [UInt8])
        /// Sends its responses.
        case stream(@Sendable (RPCContext, ServerCall) async throws(RPCStatus) -> Void)
    }

    private var entries: [String: Entry] = [:]

    public init() {}

    /// The names of all methods.
    public var methods: [String] { entries.keys.sorted() }

    /// Answers `method`, which has one response, with `handler`.
    public mutating func unary<Request, Response>(
        _ method: RPCMethod<Request, Response>,
        _ handler: @escaping @Sendable (Request, RPCContext) async throws(RPCStatus) -> Response
    ) {
        precondition(!method.isServerStreaming, "\(method.name) streams its responses")
        add(method.name) { (bytes) throws(RPCStatus) -> Handler in
            let request: Request = try Self.request(bytes)
            return .unary { (context, limit) async throws(RPCStatus) in
                try await handler(request, context).bytesToSend(limit: limit, what: "response")
            }
        }
    }

    /// Answers `method`, which has any number of responses, with `handler`.
    public mutating func stream<Request, Response>(
        _ method: RPCMethod<Request, Response>,
        _ handler:
            @escaping @Sendable (Request, RPCContext, RPCWriter<Response>) async throws(RPCStatus) -> Void
    ) {
        precondition(method.isServerStreaming, "\(method.name) has one response")
        add(method.name) { (bytes) throws(RPCStatus) -> Handler in
            let request: Request = try Self.request(bytes)
            return .stream { (context, call) async throws(RPCStatus) in
                try await handler(request, context, RPCWriter<Response>(call))
            }
        }
    }

    func knows(_ method: String) -> Bool { entries[method] != nil }

    subscript(method: String) -> Entry? { entries[method] }

    private mutating func add(_ name: String, _ entry: @escaping Entry) {
        precondition(entries[name] == nil, "\(name) has two handlers")
        entries[name] = entry
    }

    private static func request<Request: WireMessage>(_ bytes: [UInt8]) throws(RPCStatus) -> Request {
        do throws(WireError) {
            return try Request.decode(bytes, limits: .request)
        } catch {
            throw RPCStatus(
                .invalidArgument, "\(error).", reason: "FIELD_INVALID", subject: error.field)
        }
    }
}

/// Sends the responses of a call.
public struct RPCWriter<Response: WireMessage>: Sendable {
    private let call: ServerCall

    init(_ call: ServerCall) { self.call = call }

    /// Sends a response, and waits before that until the client has given credit and reads.
    ///
    /// Throws `cancelled` once the call has ended, and `resourceExhausted` for a message that is larger than
    /// the client takes.
    public func write(_ response: Response) async throws(RPCStatus) {
        let message = CollectionOfOne(try response.bytesToSend(limit: call.limit, what: "response"))
        // As in `RPCConnection.call`.
        if try call.connection.sendAtOnce(message, on: call.stream) == 0 {
            try await call.connection.send(message, on: call.stream)
        }
    }

    /// Of so many bytes, or a few more, messages are made ready before they are sent.
    private static var page: Int { 16 << 10 }

    /// Sends responses in order, as `write` does one by one, and takes less time for them together: whoever has several
    /// uses this.
    public func write(contentsOf responses: [Response]) async throws(RPCStatus) {
        var messages: [[UInt8]] = []
        var bytes = 0
        for response in responses {
            do throws(RPCStatus) {
                let message = try response.bytesToSend(limit: call.limit, what: "response")
                messages.append(message)
                bytes += message.count
            } catch {
                try await call.connection.send(messages, on: call.stream)
                throw error
            }
            guard bytes >= Self.page else { continue }
            try await call.connection.send(messages, on: call.stream)
            messages.removeAll(keepingCapacity: true)
            bytes = 0
        }
        try await call.connection.send(messages, on: call.stream)
    }
}

/// A call that a handler answers.
struct ServerCall: Sendable {
    let connection: ServerConnection
    let stream: UInt32
    /// The largest message that the client takes, in bytes.
    let limit: Int
}
