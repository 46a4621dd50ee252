/// Who called, and what the call says beside its request.
public struct RPCContext: Sendable {
    public var peer: RPCPeer
    public var metadata: [RPCMetadata]
    /// When the caller stops waiting; nil if it waits without end. The handler's task is cancelled then.
    public var deadline: ContinuousClock.Instant?

    public init(peer: RPCPeer, metadata: [RPCMetadata] = [], deadline: ContinuousClock.Instant? = nil) {
        self.peer = peer
        self.metadata = metadata
        self.deadline = deadline
    }
}

/// The other side of a connection, as the system tells it.
public struct RPCPeer: Sendable, Hashable, CustomStringConvertible {
    public enum Transport: String, Sendable, Hashable {
        case unix, tcp, tls, inProcess
    }

    /// What the system says of the process at the other end of a Unix socket (SO_PEERCRED), when it connected.
    public struct Credentials: Sendable, Hashable {
        public var processID: Int32
        public var userID: UInt32
        public var groupID: UInt32

        public init(processID: Int32, userID: UInt32, groupID: UInt32) {
            self.processID = processID
            self.userID = userID
            self.groupID = groupID
        }
    }

    public var transport: Transport
    /// For Unix sockets and calls within the process.
    public var credentials: Credentials?
    /// The address and port for TCP; empty for others.
    public var address: String
    /// Whether the peer is on this machine, as far as the address tells.
    public var isLoopback: Bool

    public init(
        transport: Transport, credentials: Credentials? = nil, address: String = "", isLoopback: Bool = true
    ) {
        self.transport = transport
        self.credentials = credentials
        self.address = address
        self.isLoopback = isLoopback
    }

    /// For logs: `uid 1000 (process 4242)`, `127.0.0.1:51234`.
    public var description: String {
        if let credentials { return "uid \(credentials.userID) (process \(credentials.processID))" }
        return address.isEmpty ? transport.rawValue : address
    }
}
