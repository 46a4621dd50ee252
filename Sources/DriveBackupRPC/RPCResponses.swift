public import DriveBackupWire
internal import Synchronization

/// The responses of a call that streams them, in order. Ends with the call; throws its status if that is not OK.
///
/// The server waits while nobody takes them. Cancelling the task that iterates cancels the call, a few messages later when many
/// have come together, and so does forgetting the sequence and its iterator. It is iterated once, by one task at a time.
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
        /// What has come with the last one that was waited for, and how much of it was taken.
        private var messages: [[UInt8]] = []
        private var taken = 0
        /// After so many of what has come the task is asked whether it is cancelled.
        private static var glance: Int { 4 }
        /// Bytes that were taken and that the server has not been told of.
        private var bytesTaken = 0

        init(_ call: ClientCall) { self.call = call }

        public mutating func next() async throws(RPCStatus) -> Response? {
            try await next(isolation: #isolation)
        }

        public mutating func next(
            isolation actor: isolated (any Actor)?
        ) async throws(RPCStatus) -> Response? {
            if taken % Self.glance == 0 || taken == messages.count, Task.isCancelled { call.cancel() }
            if taken < messages.count, call.isCancelled {
                messages = []
                taken = 0
                throw RPCStatus(.cancelled, "The call was cancelled.")
            }
            if taken == messages.count {
                messages = []
                taken = 0
                give()
                guard let next = try await call.next() else { return nil }
                messages = next
            }
            defer {
                bytesTaken += messages[taken].count
                taken += 1
                if bytesTaken >= call.halfWindow { give() }
            }
            return try ClientCall.response(messages[taken])
        }

        /// Lets the server send as much as was taken.
        private mutating func give() {
            if bytesTaken > 0 { call.took(bytesTaken) }
            bytesTaken = 0
        }
    }
}

/// A call that the client has made, with any number of responses. It ends with the last reference to it.
final class ClientCall: Sendable {
    private let connection: ClientConnection
    private let stream: UInt32
    /// A connection that nobody else holds lives as long as its calls.
    private let owner: any AnyObject & Sendable
    private let wasCancelled = Atomic(false)

    init(_ connection: ClientConnection, stream: UInt32, owner: any AnyObject & Sendable) {
        self.connection = connection
        self.stream = stream
        self.owner = owner
    }

    deinit { connection.forget(stream) }

    var halfWindow: Int { connection.halfWindow }

    /// Whether the caller wants nothing of it any more.
    var isCancelled: Bool { wasCancelled.load(ordering: .relaxed) }

    func cancel() {
        wasCancelled.store(true, ordering: .relaxed)
        connection.cancel(stream)
    }

    /// The next messages, at least one; nil when the call has ended with OK.
    func next() async throws(RPCStatus) -> [[UInt8]]? {
        while true {
            switch connection.takeNext(stream) {
            case .messages(let messages): return messages
            case .ended(let status):
                if status.code == .ok { return nil }
                throw status
            case nil: await connection.wait(for: stream)
            }
        }
    }

    func took(_ bytes: Int) { connection.took(bytes, of: stream) }

    static func response<Response: WireMessage>(_ bytes: [UInt8]) throws(RPCStatus) -> Response {
        do throws(WireError) {
            return try Response.decode(bytes, limits: .response)
        } catch {
            throw RPCStatus(.internal, "The agent's answer cannot be decoded: \(error).")
        }
    }
}
