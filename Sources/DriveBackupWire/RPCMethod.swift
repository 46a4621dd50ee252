/// A method of a service: its name and its types.
public struct RPCMethod<Request: WireMessage, Response: WireMessage>: Sendable, Hashable {
    /// `drivebackup.v1.Backups/Start`.
    public let name: String
    /// Whether any number of responses follow, or exactly one.
    public let isServerStreaming: Bool

    public init(_ name: String, isServerStreaming: Bool) {
        self.name = name
        self.isServerStreaming = isServerStreaming
    }
}
