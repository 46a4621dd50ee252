internal import BlockIO
internal import CBlockIO
internal import Glibc

/// Takes connections, within a bound, and looks after those who use up our patience.
final class Reception: Sendable {
    /// The sockets that listen.
    let doors = Members<Socket>()
    let connections: Members<Connection>

    private let registry: ExportRegistry
    private let engine: any IOEngine
    private let limits: NBDLimits
    private let address: NBDAddress
    private let log: @Sendable (String) -> Void

    init(
        _ registry: ExportRegistry, _ engine: any IOEngine, _ limits: NBDLimits, _ address: NBDAddress,
        _ log: @escaping @Sendable (String) -> Void
    ) {
        self.registry = registry
        self.engine = engine
        self.limits = limits
        self.address = address
        self.log = log
        connections = Members(maximum: limits.connections)
    }

    /// Takes connections until the socket is shut down, and serves them until all are over.
    func accept(at door: Socket) async {
        await withDiscardingTaskGroup { group in
            var refused = 0
            var failures = 0
            while !doors.isClosed {
                let result = Int32(truncatingIfNeeded: await engine.accept(door.descriptor))
                guard result >= 0 else {
                    guard !doors.isClosed, await bear(-result, &failures) else { break }
                    continue
                }
                failures = 0
                let socket = Socket(result)
                switch address {
                case .unix: socket.prepareUnix()
                case .tcp: socket.prepareTCP()
                }
                let connection = Connection(socket, limits, log: log)
                guard connections.join(connection) else {
                    socket.close()
                    if refused == 0, !doors.isClosed {
                        log("\(address) has \(limits.connections) NBD clients and takes no more for now")
                    }
                    refused += 1
                    continue
                }
                refused = 0
                group.addTask { [registry, engine, connections] in
                    await connection.run(registry, on: engine)
                    connections.leave(connection)
                }
            }
            door.close()
            doors.leave(door)
        }
    }

    /// What to do when a connection cannot be taken: false when none ever will.
    private func bear(_ errno: Int32, _ failures: inout Int) async -> Bool {
        switch errno {
        // The client has gone again, or the network says something about it.
        case EINTR, EAGAIN, ECONNABORTED, EPROTO, EPERM, ENETDOWN, ENETUNREACH, EHOSTDOWN, EHOSTUNREACH,
            ENONET,
            EOPNOTSUPP, ENOPROTOOPT, ETIMEDOUT:
            return true
        case EMFILE, ENFILE, ENOBUFS, ENOMEM: break
        default:
            log("No NBD client is taken at \(address) any more: \(BlockError.describe(errno: errno))")
            return false
        }
        if failures == 0 {
            log(
                "Couldn't take an NBD client at \(address): \(BlockError.describe(errno: errno)); trying again"
            )
        }
        failures += 1
        // Cancelled or not: the loop looks whether it goes on.
        try? await Task.sleep(for: .milliseconds(100))
        return true
    }

    /// Looks after the clients until it is cancelled.
    func watch() async {
        // It throws when it is cancelled.
        while (try? await Task.sleep(for: limits.tick)) != nil {
            let isContended = limits.memory.isContended
            let now = ContinuousClock.now
            for connection in connections.all { connection.check(at: now, isContended: isContended) }
        }
    }
}
