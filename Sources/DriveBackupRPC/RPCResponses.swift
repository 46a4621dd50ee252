public import DriveBackupWire

/// The responses of a call that streams them, in order. Ends with the call; throws its status if that is not OK.
///
/// The server waits while nobody takes them. Cancelling the task that iterates cancels the call, and so does
/// forgetting the sequence and its iterator. It is iterated once, by one task at a time.
public struct RPCResponses<Response: WireMessage>: AsyncSequence, Sendable {
    public typealias Element = Response
    public typealias Failure = RPCStatus

    private let call: ClientCall

    init(_ call: ClientCall) { self.call = call }

    public func makeAsyncIterator() -> Iterator { Iterator(call) }

    /// Ends the call: the iteration throws `cancelled`.
    public func cancel() { call.cancel() }

    public struct Iterator: AsyncIteratorProtocol {
        private let call: ClientCall

        init(_ call: ClientCall) { self.call = call }

        public mutating func next() async throws(RPCStatus) -> Response? {
            try await next(isolation: #isolation)
        }

        public mutating func next(
            isolation actor: isolated (any Actor)?
        ) async throws(RPCStatus) -> Response? {
            guard let bytes = try await call.next() else { return nil }
            return try ClientCall.response(bytes)
        }
    }
}

/// A call that the client has made. It ends with the last reference to it.
final class ClientCall: Sendable {
    private let connection: ClientConnection
    private let stream: UInt32
    /// A connection that nobody else holds lives as long as its calls.
    private let owner: any AnyObject & Sendable

    init(_ connection: ClientConnection, stream: UInt32, owner: any AnyObject & Sendable) {
        self.connection = connection
        self.stream = stream
        self.owner = owner
    }

    deinit { connection.forget(stream) }

    func cancel() { connection.cancel(stream) }

    /// The next message; nil when the call has ended with OK.
    func next() async throws(RPCStatus) -> [UInt8]? {
        switch await connection.next(stream) {
        case .message(let bytes): return bytes
        case .ended(let status):
            if status.code == .ok { return nil }
            throw status
        }
    }

    static func response<Response: WireMessage>(_ bytes: [UInt8]) throws(RPCStatus) -> Response {
        do throws(WireError) {
            return try Response.decode(bytes, limits: .response)
        } catch {
            throw RPCStatus(.internal, "The agent's answer cannot be decoded: \(error).")
        }
    }
}
