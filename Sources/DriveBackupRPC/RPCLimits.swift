/// What a side of a connection accepts, and how long it waits.
public struct RPCLimits: Sendable {
    /// The largest payload of a frame that we take, in bytes: 64 to 4 MiB.
    public var maxPayload = 4 << 20
    /// How many bytes of messages the other side may send on a new stream before it needs credit.
    public var initialCredit = 256 << 10
    /// How many connections a server holds; more are sent away.
    public var maxConnections = 1024
    /// How many calls of one connection run at once; more get RESOURCE_EXHAUSTED.
    public var maxCallsPerConnection = 1024
    /// How many bytes of requests a server holds for all its connections together, 1 KiB added for each call;
    /// calls beyond it get RESOURCE_EXHAUSTED.
    public var maxBytesInFlight = 64 << 20
    /// How many bytes wait to be sent on a connection before messages have to wait.
    public var maxPendingBytes = 256 << 10
    /// How long the other side may take to send its HELLO.
    public var handshakeTimeout = Duration.seconds(10)
    /// After this long without a sign of life we send a PING.
    public var idleInterval = Duration.seconds(30)
    /// How long after the PING a sign of life must arrive.
    public var pingTimeout = Duration.seconds(20)
    /// How long the other side may read nothing while there is something to send.
    public var writeTimeout = Duration.seconds(30)
    /// How long a side may stay awake for the next bytes of a peer that calls or answers without a pause; zero for
    /// never. It costs processor time only while there is such a peer, and saves each call two wake-ups.
    public var briskWait = Duration.microseconds(50)
    /// How long a connection that we end stays open for the other side to read why.
    public var lingerTimeout = Duration.seconds(1)
    /// Allows TCP without TLS on addresses other than loopback.
    public var allowsRemote = false
    /// What HELLO calls our software.
    public var software = "drive-backup"

    public init() {}
}
