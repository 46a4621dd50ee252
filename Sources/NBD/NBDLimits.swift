/// What a server bears from clients. The defaults suit every use; tests have others.
struct NBDLimits: Sendable {
    /// How long a handshake may take.
    var handshake = Duration.seconds(10)
    /// How long a client may neither take what is sent to it nor give what it announced, while others wait for the memory.
    var stall = Duration.seconds(5)
    /// How fast a client gives what it announced, while others wait for the memory: its payload may take `stall`, and a
    /// second for as many bytes as this.
    var payloadBytesPerSecond = 1_000_000
    /// The same for replies, which many clients may take over one line.
    var replyBytesPerSecond = 100_000
    /// How long a client that has hung up may take to fetch what it asked for before.
    var farewell = Duration.seconds(30)
    /// How often is looked at these.
    var tick = Duration.milliseconds(500)
    /// Clients of one address at the same time.
    var connections = 1024
    var memory = RequestMemory.shared
}
