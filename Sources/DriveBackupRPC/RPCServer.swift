public import Logging
internal import NIOCore
internal import NIOPosix
internal import Synchronization

/// Answers calls on its addresses, from `bind` until `shutDown`.
public final class RPCServer: Sendable {
    private struct State {
        var listeners: [Listener] = []
        var connections: [ObjectIdentifier: ServerConnection] = [:]
        var isStopping = false
        var isOver = false
        var waiters: [CheckedContinuation<Void, Never>] = []
    }

    private let listen: [RPCAddress]
    private let router: RPCRouter
    private let limits: RPCLimits
    private let logger: Logger
    private let budget: ByteBudget
    private let state = Mutex(State())

    /// - Parameters:
    ///   - listen: where to listen; a TCP port of 0 stands for any that is free.
    ///   - logger: is told of connections that end for a bad reason.
    public init(listen: [RPCAddress], router: RPCRouter, limits: RPCLimits = RPCLimits(), logger: Logger) {
        self.listen = listen
        self.router = router
        self.limits = limits
        self.logger = logger
        budget = ByteBudget(capacity: limits.maxBytesInFlight)
    }

    /// Begins to listen on all addresses, or on none: then the error says which one failed and why.
    ///
    /// A Unix socket file gets mode 0660; one that nobody answers on is replaced, one that answers is an error.
    public func bind() async throws(RPCStatus) {
        for address in listen {
            do throws(RPCStatus) {
                let listener = try await Listener.open(address, limits: limits) { channel in
                    self.accept(channel, at: address)
                }
                state.withLock { $0.listeners.append(listener) }
            } catch {
                await closeListeners()
                throw error
            }
        }
    }

    /// Where the server listens: as given, with the port that was chosen where it was 0.
    public var addresses: [RPCAddress] { state.withLock { $0.listeners.map(\.address) } }

    /// How many connections there are.
    public var connections: Int { state.withLock { $0.connections.count } }

    /// How many handlers have not returned.
    public var runningHandlers: Int {
        state.withLock { Array($0.connections.values) }.reduce(0) { $0 + $1.runningHandlers }
    }

    /// How many bytes of requests are held, 1 KiB added for each call.
    var bytesInFlight: Int { budget.usedBytes }

    /// Lasts until `shutDown` has done its work. Cancelling the task shuts down at once.
    public func run() async {
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let isOver = state.withLock { state in
                    if !state.isOver { state.waiters.append(continuation) }
                    return state.isOver
                }
                if isOver { continuation.resume() }
            }
        } onCancel: {
            abort()
        }
        await closeListeners()
    }

    /// Stops: takes no connections and no calls any more, lets those that run end within `grace`, then ends them.
    public func shutDown(within grace: Duration) async {
        let connections = state.withLock { state in
            state.isStopping = true
            return Array(state.connections.values)
        }
        await closeListeners()
        let status = RPCStatus(.unavailable, "The agent is stopping.", reason: "AGENT_STOPPING")
        for connection in connections { connection.shutDown(status) }
        finishIfDone()

        let end = MultiThreadedEventLoopGroup.singleton.next().scheduleTask(
            in: .nanoseconds(Int64(0).adding(grace))
        ) { self.abort() }
        await withCheckedContinuation { continuation in
            let isOver = state.withLock { state in
                if !state.isOver { state.waiters.append(continuation) }
                return state.isOver
            }
            if isOver { continuation.resume() }
        }
        end.cancel()
    }

    /// A client of this server's methods without a socket; for tests and for callers within the process.
    public func connectInProcess(peer: RPCPeer) async throws(RPCStatus) -> RPCConnection {
        let connection = ServerConnection(router: router, limits: limits, budget: budget, peer: peer)
        let isStopping = state.withLock { state in
            if !state.isStopping { state.connections[ObjectIdentifier(connection)] = connection }
            return state.isStopping
        }
        if isStopping {
            throw RPCStatus(.unavailable, "The agent is stopping.", reason: "AGENT_STOPPING")
        }
        return try await InProcessPipe.connect(to: connection, limits: limits) { self.closed(connection) }
    }

    // MARK: Connections

    private func accept(_ channel: any Channel, at address: RPCAddress) -> EventLoopFuture<Void> {
        Listener.peer(of: channel, at: address).flatMapThrowing { peer in
            let connection = ServerConnection(
                router: self.router, limits: self.limits, budget: self.budget, peer: peer)
            let (isWelcome, isStopping) = self.state.withLock { state in
                let isWelcome = !state.isStopping && state.connections.count < self.limits.maxConnections
                // One that is sent away counts, too: it holds a descriptor until it has read why.
                state.connections[ObjectIdentifier(connection)] = connection
                return (isWelcome, state.isStopping)
            }
            channel.closeFuture.whenComplete { _ in self.closed(connection) }
            try ChannelTransport.build(connection, in: channel)
            if !isWelcome {
                let most = self.limits.maxConnections
                self.logger.warning("Refused a connection of \(peer): there are \(most) already.")
                connection.refuse(
                    isStopping
                        ? RPCStatus(.unavailable, "The agent is stopping.", reason: "AGENT_STOPPING")
                        : RPCStatus(
                            .resourceExhausted, "The agent has \(most) connections, the most it takes."))
            }
        }
    }

    private func closed(_ connection: ServerConnection) {
        if let reason = connection.badEnd {
            logger.info("The connection of \(connection.peer) ended: \(reason)")
        }
        state.withLock { _ = $0.connections.removeValue(forKey: ObjectIdentifier(connection)) }
        finishIfDone()
    }

    /// Ends all connections, whatever runs on them.
    private func abort() {
        let connections = state.withLock { state in
            state.isStopping = true
            return Array(state.connections.values)
        }
        let status = RPCStatus(.unavailable, "The agent is stopping.", reason: "AGENT_STOPPING")
        for connection in connections { connection.refuse(status) }
        finishIfDone()
    }

    private func finishIfDone() {
        let waiters = state.withLock { state -> [CheckedContinuation<Void, Never>] in
            guard state.isStopping, state.connections.isEmpty else { return [] }
            state.isOver = true
            defer { state.waiters = [] }
            return state.waiters
        }
        for waiter in waiters { waiter.resume() }
    }

    private func closeListeners() async {
        let listeners = state.withLock { state in
            defer { state.listeners = [] }
            return state.listeners
        }
        for listener in listeners { await listener.close() }
    }
}
