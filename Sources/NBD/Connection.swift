internal import BlockIO
internal import Glibc
internal import Synchronization

/// A client from accept to close: the handshake on the server's engine, then the transmission on its device's.
final class Connection: Sendable {
    private struct State {
        var transmission: Transmission?
        var isCutOff = false
        var incoming: Seen
        var outgoing: Seen
    }

    /// What the watchdog saw last of one direction.
    private struct Seen {
        var count = 0
        var at: ContinuousClock.Instant

        /// For how long nothing has moved that is waited for.
        mutating func idle(_ way: Transmission.Progress.Way, at now: ContinuousClock.Instant) -> Duration {
            let count = way.count
            if count != self.count || !way.isWaiting { self = Seen(count: count, at: now) }
            return now - at
        }
    }

    let socket: Socket
    private let input = ReceiveBuffer()
    let progress: Transmission.Progress
    private let limits: NBDLimits
    private let log: @Sendable (String) -> Void
    private let began = ContinuousClock.now
    private let state: Mutex<State>

    /// `onHangUp` is called when the client sends nothing more.
    init(
        _ socket: Socket, _ limits: NBDLimits, onHangUp: @escaping @Sendable () -> Void,
        log: @escaping @Sendable (String) -> Void
    ) {
        self.socket = socket
        progress = Transmission.Progress(onHangUp: onHangUp)
        self.limits = limits
        self.log = log
        state = Mutex(State(incoming: Seen(at: began), outgoing: Seen(at: began)))
    }

    /// Serves the client to its end. `registry` knows the exports; `engine` does the handshake.
    func run(_ registry: ExportRegistry, on engine: any IOEngine) async {
        defer { socket.close() }
        guard let agreement = await shakeHands(registry, on: engine) else { return }
        // It may have been removed since.
        guard let served = registry.find(id: agreement.exportID) else { return }
        let transmission = Transmission(
            served, agreement, socket: socket, input: input, memory: limits.memory, progress: progress,
            log: log)
        guard served.join(transmission) else { return }
        let isCutOff = state.withLock { state in
            state.transmission = transmission
            return state.isCutOff
        }
        if isCutOff { transmission.cutOff() }
        await transmission.engine.run { await transmission.run() }
        served.leave(transmission)
    }

    /// Disconnects the client, on whatever thread.
    func cutOff() {
        let transmission = state.withLock { state in
            state.isCutOff = true
            return state.transmission
        }
        transmission?.cutOff()
        socket.shutDown()
    }

    /// Whether its time may run out though nobody waits for memory: `check` is to be called now and then.
    var isOnTheClock: Bool {
        state.withLock { !$0.isCutOff && ($0.transmission == nil || progress.hasHungUp) }
    }

    /// Disconnects a client that has used up our patience: the watchdog calls this now and then.
    func check(at now: ContinuousClock.Instant, isContended: Bool) {
        let verdict: String? = state.withLock { state in
            guard !state.isCutOff else { return nil }
            guard let transmission = state.transmission else {
                return now - began > limits.handshake ? "its handshake took too long" : nil
            }
            // What a client sends says nothing of the replies that it does not take, nor the other way round.
            let toCome = state.incoming.idle(progress.incoming, at: now)
            let toLeave = state.outgoing.idle(progress.outgoing, at: now)
            if isContended, limits.memory.held(by: transmission.account) > 0 {
                if max(toCome, toLeave) > limits.stall {
                    return "it kept memory that others waited for, and stood still"
                }
                if progress.incoming.isLate(at: now, limits.stall, limits.payloadBytesPerSecond) {
                    return "it kept memory that others waited for, and its data came too slowly"
                }
                if progress.outgoing.isLate(at: now, limits.stall, limits.replyBytesPerSecond) {
                    return "it kept memory that others waited for, and took its replies too slowly"
                }
            }
            if progress.hasHungUp && toLeave > limits.farewell {
                return "it hung up and did not fetch its replies"
            }
            return nil
        }
        guard let verdict else { return }
        log("Disconnected an NBD client: \(verdict)")
        cutOff()
    }

    // MARK: Handshake

    /// How much of what has arrived is answered before the answers leave, in bytes: a question of 16 has all exports as its
    /// answer.
    private static let handshakePiece = 512

    private func shakeHands(
        _ registry: ExportRegistry, on engine: any IOEngine
    ) async -> HandshakeMachine.Agreement? {
        var machine = HandshakeMachine { registry.facts }
        let sender = ReplySender(socket, engine) {}
        guard await send(HandshakeMachine.greeting, sender) else { return nil }
        while true {
            if input.count == 0 {
                guard await input.receive(from: socket, on: engine) > 0 else { return nil }
            }
            let piece = input.bytes.prefix(Self.handshakePiece)
            let actions = machine.receive(piece)
            // What belongs to the transmission stays where it is; of anything else the machine keeps what it needs.
            input.drop(piece.count - (actions.hasAgreement ? machine.leftover.count : 0))
            for action in actions {
                switch action {
                case .send(let bytes): guard await send(bytes, sender) else { return nil }
                case .transmit(let agreement): return agreement
                case .close(let ending):
                    if case .garbage(let why) = ending { log("Disconnected an NBD client: \(why)") }
                    return nil
                }
            }
        }
    }

    private func send(_ bytes: [UInt8], _ sender: ReplySender) async -> Bool {
        let buffer = IOBuffer(count: bytes.count)
        buffer.bytes.copyBytes(from: bytes)
        return await sender.send(buffer.slice)
    }
}

extension [HandshakeMachine.Action] {
    fileprivate var hasAgreement: Bool {
        contains { if case .transmit = $0 { true } else { false } }
    }
}
