internal import Synchronization

/// A server's connection: runs a handler for each call, and carries what it says to the transport.
final class ServerConnection: Connection {
    private struct State {
        var machine: ServerMachine
        var tasks: [UInt32: Task<Void, Never>] = [:]
        var waiters = SendWaiters()
        var wake: (@Sendable () -> Void)?
        /// The transport has been woken, or comes anyway, and has not come yet.
        var isWoken = false

        /// What to call, without the lock, so that the transport comes; nil if it comes anyway.
        mutating func wakeUp() -> (@Sendable () -> Void)? {
            guard !isWoken, let wake else { return nil }
            isWoken = true
            return wake
        }
    }

    let peer: RPCPeer
    private let router: RPCRouter
    private let state: Mutex<State>

    init(router: RPCRouter, limits: RPCLimits, budget: ByteBudget, peer: RPCPeer) {
        self.peer = peer
        self.router = router
        state = Mutex(
            State(
                machine: ServerMachine(limits: limits, budget: budget, now: RPCClock.now) { router.knows($0) }
            ))
    }

    // MARK: The transport

    /// Some nine calls.
    let partSize = 640

    func attach(wake: @escaping @Sendable () -> Void) {
        state.withLock { $0.wake = wake }
    }

    func received(_ bytes: UnsafeRawBufferPointer, now: Int64) {
        // The pointer is used within the lock's closure only.
        nonisolated(unsafe) let bytes = bytes  // SAFETY: the closure runs before this function returns.
        perform(
            state.withLock { state in
                state.isWoken = true
                return state.machine.receive(bytes, now: now)
            })
    }

    func wrote(_ count: Int, now: Int64) {
        perform(state.withLock { $0.machine.wrote(count, now: now) })
    }

    func work(now: Int64) -> TransportWork {
        let (work, effects) = state.withLock { state in
            state.isWoken = false
            let effects = state.machine.tick(now: now)
            return (state.machine.work(now: now), effects)
        }
        perform(effects)
        return work
    }

    func disconnected(_ status: RPCStatus) {
        perform(
            state.withLock { state in
                state.wake = nil
                return state.machine.disconnected(status)
            })
    }

    // MARK: The server

    /// Takes no new calls, and ends the connection with the last one that runs.
    func shutDown(_ status: RPCStatus) {
        state.withLock { $0.machine.shutDown(status, now: RPCClock.now) }
        wakeTransport()
    }

    /// Ends the connection and its calls, with a reason for the peer.
    func refuse(_ status: RPCStatus) {
        perform(state.withLock { $0.machine.refuse(status, now: RPCClock.now) })
        wakeTransport()
    }

    /// Why the connection ended, if it was neither the client's nor the server's wish.
    var badEnd: RPCStatus? {
        let reason = state.withLock { $0.machine.link.reason }
        return reason?.code == .unavailable ? nil : reason
    }

    /// Handlers that have not returned, also after the connection's end.
    var runningHandlers: Int { state.withLock { $0.machine.runningHandlers } }

    // MARK: Handlers

    /// The largest message that the client takes, in bytes; it has said so before it has made a call.
    private var maxMessage: Int { state.withLock { $0.machine.maxMessage } }

    /// Sends messages of a call, each as soon as it may.
    func send(_ messages: some Collection<[UInt8]>, on stream: UInt32) async throws(RPCStatus) {
        var rest = messages[...]
        while true {
            rest = rest.dropFirst(try sendAtOnce(rest, on: stream))
            if rest.isEmpty { return }
            await mayHaveChanged(stream)
            if Task.isCancelled { throw RPCStatus(.cancelled, "The call has ended.") }
        }
    }

    /// Sends the first of `messages` that may be sent now; returns how many.
    func sendAtOnce(_ messages: some Collection<[UInt8]>, on stream: UInt32) throws(RPCStatus) -> Int {
        let (count, outcome, wake) = state.withLock { state in
            var (count, outcome) = (0, ServerMachine.Sending.sent)
            let now = RPCClock.now
            for message in messages {
                outcome = state.machine.send(message, on: stream, now: now)
                guard outcome == .sent else { break }
                count += 1
            }
            return (count, outcome, count > 0 ? state.wakeUp() : nil)
        }
        wake?()
        if outcome == .ended { throw RPCStatus(.cancelled, "The call has ended.") }
        return count
    }

    /// Sends a unary call's one message and ends the call, if that may be now; false when it has to wait.
    private func answerAtOnce(_ message: [UInt8], on stream: UInt32) -> Bool {
        let (outcome, wake) = state.withLock { state in
            let outcome = state.machine.answer(message, on: stream, now: RPCClock.now)
            if outcome == .sent { state.tasks[stream] = nil }
            return (outcome, outcome == .sent ? state.wakeUp() : nil)
        }
        wake?()
        return outcome == .sent
    }

    /// Returns when it is worth trying again to send, or the task is cancelled.
    private func mayHaveChanged(_ stream: UInt32) async {
        let token = state.withLock { $0.waiters.newToken() }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let waits = state.withLock { state in
                    // Looked at under the lock: a cancellation that comes later finds the waiter.
                    guard !Task.isCancelled, state.machine.sending(on: stream) == .wait else { return false }
                    state.waiters.add(token, stream: stream, continuation)
                    state.machine.noteWaiter()
                    return true
                }
                if !waits { continuation.resume() }
            }
        } onCancel: {
            for waiter in state.withLock({ $0.waiters.take(token) }) { waiter.resume() }
        }
    }

    private func perform(_ effects: [ServerMachine.Effect]) {
        for effect in effects {
            switch effect {
            case .dispatch(let call): dispatch(call)
            case .cancel(let stream): state.withLock { $0.tasks.removeValue(forKey: stream) }?.cancel()
            case .maySend(let stream):
                for waiter in state.withLock({ $0.waiters.take(stream: stream) }) { waiter.resume() }
            case .allMaySend:
                for waiter in state.withLock({ $0.waiters.takeAll() }) { waiter.resume() }
            }
        }
        if !effects.isEmpty { wakeTransport() }
    }

    private func dispatch(_ call: IncomingCall) {
        let handler: RPCRouter.Handler
        do throws(RPCStatus) {
            guard let entry = router[call.method] else {
                throw RPCStatus(.unimplemented, "There is no method \"\(call.method)\".")
            }
            handler = try entry(call.request)
        } catch {
            ended(call.stream, error)
            return
        }
        let context = RPCContext(
            peer: peer, metadata: call.metadata, deadline: call.deadline.map { RPCClock.instant($0) })
        let serverCall = ServerCall(connection: self, stream: call.stream, limit: maxMessage)
        // The connection owns the task: it is cancelled with its call, at the latest when the transport goes. It begins
        // here and now: many handlers have answered when this returns.
        let task = Task.immediate {
            do throws(RPCStatus) {
                switch handler {
                case .unary(let respond):
                    let message = try await respond(context, serverCall.limit)
                    if answerAtOnce(message, on: call.stream) { return }
                    try await send(CollectionOfOne(message), on: call.stream)
                    ended(call.stream, .ok)
                case .stream(let respond):
                    try await respond(context, serverCall)
                    ended(call.stream, .ok)
                }
            } catch {
                ended(call.stream, error)
            }
        }
        let hasEnded = state.withLock { state in
            // The handler may have returned before we got here, or its call have ended.
            guard state.machine.isRunning(call.stream) else { return false }
            guard state.machine.sending(on: call.stream) != .ended else { return true }
            state.tasks[call.stream] = task
            return false
        }
        // Not under the lock, which the task may take then.
        if hasEnded { task.cancel() }
    }

    private func ended(_ stream: UInt32, _ status: RPCStatus) {
        let effects = state.withLock { state in
            state.tasks[stream] = nil
            let effects = state.machine.finish(stream, status, now: RPCClock.now)
            state.machine.handlerEnded(stream)
            return effects
        }
        perform(effects)
    }

    private func wakeTransport() { state.withLock { $0.wakeUp() }?() }
}
