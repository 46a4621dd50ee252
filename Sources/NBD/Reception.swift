internal import BlockIO
internal import CBlockIO
internal import Glibc
internal import Synchronization

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
    private let wakeUps: AsyncStream<Void>
    private let waker: AsyncStream<Void>.Continuation
    /// The watch waits to be woken, by no clock.
    private let isAsleep = Atomic(false)

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
        (wakeUps, waker) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
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
                let isUnix = if case .unix = address { true } else { false }
                let socket = Socket(result, isUnix: isUnix)
                socket.prepare()
                let connection = Connection(socket, limits, onHangUp: { [waker] in waker.yield() }, log: log)
                guard connections.join(connection) else {
                    socket.close()
                    if refused == 0, !doors.isClosed {
                        log("\(address) has \(limits.connections) NBD clients and takes no more for now")
                    }
                    refused += 1
                    continue
                }
                refused = 0
                // Its time runs.
                waker.yield()
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

    /// Looks after the clients until it is cancelled. While nobody's time can run out it sleeps, and a server whose clients
    /// are idle costs nothing.
    func watch() async {
        let observer = limits.memory.whenSomebodyWaits { [waker] in waker.yield() }
        defer { limits.memory.stopTelling(observer) }
        var wakeUps = wakeUps.makeAsyncIterator()
        while true {
            guard limits.memory.waiting > 0 || connections.all.contains(where: \.isOnTheClock) else {
                isAsleep.store(true, ordering: .relaxed)
                // Woken before it slept, too, and by nothing when it is cancelled.
                guard await wakeUps.next() != nil else { return }
                isAsleep.store(false, ordering: .relaxed)
                continue
            }
            // It throws when it is cancelled.
            guard (try? await Task.sleep(for: limits.tick)) != nil else { return }
            let isContended = limits.memory.isContended
            let now = ContinuousClock.now
            for connection in connections.all { connection.check(at: now, isContended: isContended) }
        }
    }

    /// Whether nobody has to be looked after.
    var isWatchAsleep: Bool { isAsleep.load(ordering: .relaxed) }
}
