internal import NIOCore
internal import NIOPosix

/// Joins a client's and a server's connection in memory. What one sends the other receives, on one event loop.
final class InProcessPipe {
    private final class End {
        let connection: any Connection
        /// Sent by the other end, and not wanted yet.
        var held: [UInt8] = []
        var wantsRead = true
        var timer: Scheduled<Void>?

        init(_ connection: any Connection) { self.connection = connection }
    }

    private let ends: [End]
    private let eventLoop: any EventLoop
    private let onEnd: @Sendable () -> Void
    private var isOver = false

    private init(
        _ client: any Connection, _ server: any Connection, on eventLoop: any EventLoop,
        onEnd: @escaping @Sendable () -> Void
    ) {
        ends = [End(client), End(server)]
        self.eventLoop = eventLoop
        self.onEnd = onEnd
    }

    /// Makes a client's connection to `server`. `onEnd` is called when the two are no longer joined.
    static func connect(
        to server: ServerConnection, limits: RPCLimits, onEnd: @escaping @Sendable () -> Void = {}
    ) async throws(RPCStatus) -> RPCConnection {
        let client = ClientConnection(limits: limits)
        let eventLoop = MultiThreadedEventLoopGroup.singleton.next()
        eventLoop.execute {
            let pipe = NIOLoopBound(
                InProcessPipe(client, server, on: eventLoop, onEnd: onEnd), eventLoop: eventLoop)
            for (index, connection) in [client as any Connection, server].enumerated() {
                connection.attach { eventLoop.execute { pipe.value.service(index) } }
                pipe.value.service(index)
            }
        }
        let result = RPCConnection(client, running: LoopExecutor(eventLoop))
        try await client.ready()
        return result
    }

    private func service(_ index: Int) {
        guard !isOver else { return }
        let end = ends[index]
        let work = end.connection.work(now: RPCClock.now)
        end.wantsRead = work.wantsRead
        deliver(to: index)
        if !work.bytes.isEmpty {
            ends[1 - index].held += work.bytes
            deliver(to: 1 - index)
        }
        if work.ending != .none {
            over()
            return
        }
        schedule(work.timer, index)
    }

    private func deliver(to index: Int) {
        let end = ends[index]
        guard !isOver, end.wantsRead, !end.held.isEmpty else { return }
        let bytes = end.held
        end.held = []
        bytes.withUnsafeBytes { end.connection.received($0, now: RPCClock.now) }
        ends[1 - index].connection.wrote(bytes.count, now: RPCClock.now)
        let this = NIOLoopBound(self, eventLoop: eventLoop)
        eventLoop.execute {
            this.value.service(0)
            this.value.service(1)
        }
    }

    private func over() {
        isOver = true
        for end in ends {
            end.timer?.cancel()
            end.connection.disconnected(RPCStatus(.unavailable, "The other side closed the connection."))
        }
        onEnd()
    }

    private func schedule(_ instant: Int64?, _ index: Int) {
        let end = ends[index]
        end.timer?.cancel()
        end.timer = nil
        guard let instant else { return }
        let this = NIOLoopBound(self, eventLoop: eventLoop)
        end.timer = eventLoop.scheduleTask(in: .nanoseconds(max(0, instant - RPCClock.now))) {
            this.value.service(index)
        }
    }
}

extension RPCConnection {
    /// A connection to a server of its own that answers with `router`, without a socket.
    public static func inProcess(
        router: RPCRouter, limits: RPCLimits = RPCLimits(),
        peer: RPCPeer = RPCPeer(transport: .inProcess)
    ) async throws(RPCStatus) -> RPCConnection {
        let budget = ByteBudget(capacity: limits.maxBytesInFlight)
        let server = ServerConnection(router: router, limits: limits, budget: budget, peer: peer)
        return try await InProcessPipe.connect(to: server, limits: limits)
    }
}
