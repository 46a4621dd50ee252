internal import Synchronization

/// A client's connection: what its calls have received and wait for.
final class ClientConnection: Connection {
    /// What one call has received and nobody has taken yet.
    private struct Call {
        /// Whoever waits wants the end, not each message.
        var isUnary: Bool
        var messages: [[UInt8]] = []
        var status: RPCStatus?
        var waiter: CheckedContinuation<Void, Never>?

        /// Whether there is something for whoever waits. (Two answers to a unary call are an error; the second may be
        /// waiting for credit to be followed by the end.)
        var isWorthWaking: Bool {
            status != nil || (isUnary ? messages.count > 1 : !messages.isEmpty)
        }

        /// False when it has so many already. (In one access: what is read of a dictionary's value is copied for that.)
        mutating func add(
            _ message: [UInt8], _ woken: inout [CheckedContinuation<Void, Never>]
        ) -> Bool {
            guard messages.count < ClientConnection.maxQueuedMessages else { return false }
            messages.append(message)
            if let waiter = takeWaiter() { woken.append(waiter) }
            return true
        }

        /// Who waits, if there is something worth waking for.
        mutating func takeWaiter() -> CheckedContinuation<Void, Never>? {
            guard waiter != nil, isWorthWaking else { return nil }
            return waiter.take()
        }
    }

    private struct State {
        var machine: ClientMachine
        var isReady = false
        var closed: RPCStatus?
        var isDisconnected = false
        var calls: [UInt32: Call] = [:]
        var openers = SendWaiters()
        /// Who waits for the server's HELLO, for a PONG or for the end.
        var watchers = SendWaiters()
        var pongs: Set<UInt64> = []
        var lastPing: UInt64 = 0
        var wake: Wake?
        /// The transport has been woken, or comes anyway, and has not come yet.
        var isWoken = false

        /// What to call, without the lock, so that the transport comes; nil if it comes anyway.
        mutating func wakeUp() -> Wake? {
            guard !isWoken, let wake else { return nil }
            isWoken = true
            return wake
        }
    }

    private typealias Wake = @Sendable () -> Void

    enum Next {
        /// All that have come, at least one.
        case messages([[UInt8]])
        case ended(RPCStatus)
    }

    /// Without a payload a message costs no credit, but it costs us memory.
    private static let maxQueuedMessages = 65536

    /// How many bytes of messages may be taken before the server must be told, so that it does not wait: half of what
    /// it may send.
    let halfWindow: Int

    private let state: Mutex<State>

    init(limits: RPCLimits) {
        halfWindow = max(1, limits.initialCredit / 2)
        state = Mutex(State(machine: ClientMachine(limits: limits, now: RPCClock.now)))
    }

    // MARK: The transport

    /// Some nine answers.
    let partSize = 2048

    func attach(wake: @escaping @Sendable () -> Void) {
        state.withLock { $0.wake = wake }
    }

    func received(_ bytes: UnsafeRawBufferPointer, now: Int64) {
        // SAFETY: the closure runs before this function returns, and is the only one to see the pointer.
        nonisolated(unsafe) let bytes = bytes
        perform { state in
            state.isWoken = true
            return state.machine.receive(bytes, now: now)
        }
    }

    func wrote(_ count: Int, now: Int64) {
        perform { $0.machine.wrote(count, now: now) }
    }

    func work(now: Int64) -> TransportWork {
        perform { $0.machine.tick(now: now) }
        return state.withLock { state in
            state.isWoken = false
            return state.machine.work(now: now)
        }
    }

    func disconnected(_ status: RPCStatus) {
        perform { state in
            state.wake = nil
            state.isDisconnected = true
            return state.machine.disconnected(status)
        }
        for watcher in state.withLock({ $0.watchers.takeAll() }) { watcher.resume() }
    }

    // MARK: The connection

    /// The largest CALL that the server takes, in bytes.
    var maxRequest: Int { state.withLock { $0.machine.maxRequest } }
    /// The server's name for its software; empty before its HELLO.
    var software: String { state.withLock { $0.machine.link.peer?.software ?? "" } }
    /// Why no call can be made any more.
    var closed: RPCStatus? { state.withLock { $0.closed } }
    /// Calls that have not ended.
    var openCalls: Int { state.withLock { $0.machine.openCalls } }

    /// Returns when the server's HELLO has arrived.
    func ready() async throws(RPCStatus) {
        await wait { $0.isReady || $0.closed != nil }
        let (isReady, closed) = state.withLock { ($0.isReady, $0.closed) }
        if let closed { throw closed }
        if !isReady { throw RPCStatus(.cancelled, "The call was cancelled.") }
    }

    /// Returns when the server has answered a PING.
    func ping() async throws(RPCStatus) {
        let token = state.withLock { state in
            // 0 is the link's own.
            state.lastPing += 1
            state.machine.ping(token: state.lastPing, now: RPCClock.now)
            return state.lastPing
        }
        wakeTransport()
        await wait { $0.pongs.contains(token) || $0.closed != nil }
        let (answered, closed) = state.withLock { ($0.pongs.remove(token) != nil, $0.closed) }
        if answered { return }
        throw closed ?? RPCStatus(.cancelled, "The call was cancelled.")
    }

    /// Ends the connection; calls end with `status`.
    func close(_ status: RPCStatus) {
        perform { $0.machine.close(status, now: RPCClock.now) }
    }

    /// Returns when the transport is gone.
    func disconnection() async {
        await wait { $0.isDisconnected }
    }

    /// Returns when `isOver`, or the task is cancelled.
    private func wait(until isOver: @escaping @Sendable (borrowing State) -> Bool) async {
        let token = state.withLock { $0.watchers.newToken() }
        while !Task.isCancelled, !state.withLock({ isOver($0) }) {
            await withTaskCancellationHandler {
                await withCheckedContinuation { continuation in
                    let waits = state.withLock { state in
                        guard !Task.isCancelled, !isOver(state) else { return false }
                        state.watchers.add(token, stream: nil, continuation)
                        return true
                    }
                    if !waits { continuation.resume() }
                }
            } onCancel: {
                for waiter in state.withLock({ $0.watchers.take(token) }) { waiter.resume() }
            }
        }
    }

    // MARK: Calls

    /// A CALL that is to be sent.
    struct Opening {
        var payload: [UInt8]
        var isUnary: Bool
        /// In nanoseconds of the transport's clock.
        var deadline: Int64?
    }

    /// Sends a CALL as soon as there is room, and returns its stream.
    func open(_ opening: Opening) async throws(RPCStatus) -> UInt32 {
        while true {
            if let stream = try openAtOnce(opening) { return stream }
            await mayOpen()
            if Task.isCancelled { throw RPCStatus(.cancelled, "The call was cancelled.") }
            if let deadline = opening.deadline, RPCClock.now >= deadline {
                throw RPCStatus(.deadlineExceeded, "The agent did not take the call in time.")
            }
        }
    }

    /// The same if there is room; nil when it has to wait.
    func openAtOnce(_ opening: Opening) throws(RPCStatus) -> UInt32? {
        let (outcome, wake) = state.withLock { state in
            let outcome = state.machine.open(opening.payload, deadline: opening.deadline, now: RPCClock.now)
            guard case .opened(let stream) = outcome else { return (outcome, nil as Wake?) }
            state.calls[stream] = Call(isUnary: opening.isUnary)
            return (outcome, state.wakeUp())
        }
        wake?()
        switch outcome {
        case .opened(let stream): return stream
        case .refused(let status): throw status
        case .wait: return nil
        }
    }

    private func mayOpen() async {
        let token = state.withLock { $0.openers.newToken() }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let waits = state.withLock { state in
                    guard !Task.isCancelled, state.machine.mustWait else { return false }
                    state.openers.add(token, stream: nil, continuation)
                    state.machine.noteOpener()
                    return true
                }
                if !waits { continuation.resume() }
            }
        } onCancel: {
            for waiter in state.withLock({ $0.openers.take(token) }) { waiter.resume() }
        }
    }

    /// The one message of a unary call that has ended with OK; `wait` has returned.
    func takeAnswer(on stream: UInt32, of method: String) throws(RPCStatus) -> [UInt8] {
        let call = state.withLock { $0.calls.removeValue(forKey: stream) }
        guard let call else { preconditionFailure("two tasks wait for the answer on stream \(stream)") }
        guard let status = call.status else {
            cancel(stream)
            throw RPCStatus(.internal, "\(method) has one answer, a second one came.")
        }
        guard status.code == .ok else { throw status }
        guard let message = call.messages.first else {
            throw RPCStatus(.internal, "\(method) ended with OK and without its answer.")
        }
        guard call.messages.count == 1 else {
            throw RPCStatus(.internal, "\(method) has one answer, a second one came.")
        }
        return message
    }

    /// The call's next messages, or how it ended; nil when there is nothing of it yet.
    func takeNext(_ stream: UInt32) -> Next? {
        state.withLock { state in
            guard let index = state.calls.index(forKey: stream) else {
                return .ended(RPCStatus(.cancelled, "The call was cancelled."))
            }
            if state.calls.values[index].messages.isEmpty {
                return state.calls.values[index].status.map { .ended($0) }
            }
            var messages: [[UInt8]] = []
            swap(&messages, &state.calls.values[index].messages)
            return .messages(messages)
        }
    }

    /// Returns when there is something of the call to be taken; it is cancelled with the task. One task at a time.
    func wait(for stream: UInt32) async {
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let waits = state.withLock { state in
                    guard let index = state.calls.index(forKey: stream),
                        !state.calls.values[index].isWorthWaking
                    else { return false }
                    precondition(
                        state.calls.values[index].waiter == nil, "two tasks take the responses of one call")
                    state.calls.values[index].waiter = continuation
                    return true
                }
                if !waits { continuation.resume() }
            }
        } onCancel: {
            // Whoever waits, or is about to, finds the end.
            cancel(stream)
        }
    }

    /// Messages of so many bytes were taken and used: the server may send as many again.
    func took(_ bytes: Int, of stream: UInt32) {
        let wake = state.withLock { state in
            let pending = state.machine.link.pendingBytes
            state.machine.took(bytes, of: stream, now: RPCClock.now)
            return state.machine.link.pendingBytes > pending ? state.wakeUp() : nil
        }
        wake?()
    }

    /// Ends the call if it has not ended.
    func cancel(_ stream: UInt32) {
        let status = RPCStatus(.cancelled, "The call was cancelled.")
        perform { $0.machine.cancel(stream, status, now: RPCClock.now) }
    }

    /// Nobody will ask for the call again.
    func forget(_ stream: UInt32) {
        cancel(stream)
        state.withLock { $0.calls[stream] = nil }
    }

    /// Lets the machine do a step, and does what follows: notes it under the same lock, then wakes who waited.
    private func perform(_ step: (inout State) -> [ClientMachine.Effect]) {
        var woken: [CheckedContinuation<Void, Never>] = []
        let wake = state.withLock { state -> Wake? in
            var effects = step(&state)
            guard !effects.isEmpty else { return nil }
            // From the end, so that they are moved, and messages not counted.
            effects.reverse()
            while let effect = effects.popLast() { Self.note(effect, &state, &woken) }
            return state.wakeUp()
        }
        for continuation in woken { continuation.resume() }
        wake?()
    }

    /// Notes what has happened, and who is to be woken, without the lock.
    private static func note(
        _ effect: ClientMachine.Effect, _ state: inout State,
        _ woken: inout [CheckedContinuation<Void, Never>]
    ) {
        switch effect {
        case .ready:
            state.isReady = true
            woken += state.watchers.takeAll()
        case .pong(let token):
            if token != 0, token <= state.lastPing { state.pongs.insert(token) }
            woken += state.watchers.takeAll()
        case .closedForCalls(let status):
            state.closed = status
            woken += state.watchers.takeAll()
        case .mayOpen:
            woken += state.openers.takeAll()
        case .message(let stream, let message):
            guard let index = state.calls.index(forKey: stream) else { return }
            guard !state.calls.values[index].add(message, &woken) else { return }
            let status = RPCStatus(.resourceExhausted, "Too many responses came at once.")
            let effects = state.machine.cancel(stream, status, now: RPCClock.now)
            for effect in effects { note(effect, &state, &woken) }
        case .ended(let stream, let status):
            guard let index = state.calls.index(forKey: stream) else { return }
            if status.code == .cancelled { state.calls.values[index].messages = [] }
            if state.calls.values[index].status == nil { state.calls.values[index].status = status }
            if let waiter = state.calls.values[index].takeWaiter() { woken.append(waiter) }
        }
    }

    private func wakeTransport() {
        state.withLock { $0.wakeUp() }?()
    }
}
