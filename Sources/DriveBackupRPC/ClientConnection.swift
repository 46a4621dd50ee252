internal import Synchronization

/// A client's connection: what its calls have received and wait for.
final class ClientConnection: Connection {
    /// What one call has received and nobody has taken yet.
    private struct Call {
        var messages: [[UInt8]] = []
        /// Messages before this index were taken.
        var taken = 0
        var status: RPCStatus?
        var waiter: CheckedContinuation<Void, Never>?
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
        var wake: (@Sendable () -> Void)?
        var isWoken = false
    }

    enum Next {
        case message([UInt8])
        case ended(RPCStatus)
    }

    /// Without a payload a message costs no credit, but it costs us memory.
    private static let maxQueuedMessages = 65536

    private let state: Mutex<State>

    init(limits: RPCLimits) {
        state = Mutex(State(machine: ClientMachine(limits: limits, now: RPCClock.now)))
    }

    // MARK: The transport

    func attach(wake: @escaping @Sendable () -> Void) {
        state.withLock { $0.wake = wake }
    }

    func received(_ bytes: UnsafeRawBufferPointer, now: Int64) {
        // SAFETY: the closure runs before this function returns, and is the only one to see the pointer.
        nonisolated(unsafe) let bytes = bytes
        perform(state.withLock { $0.machine.receive(bytes, now: now) })
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
        let effects = state.withLock { state in
            state.wake = nil
            state.isDisconnected = true
            return state.machine.disconnected(status)
        }
        perform(effects)
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
        perform(state.withLock { $0.machine.close(status, now: RPCClock.now) })
        wakeTransport()
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

    /// Sends a CALL as soon as there is room, and returns its stream.
    func open(_ payload: [UInt8], deadline: Int64?) async throws(RPCStatus) -> UInt32 {
        while true {
            let opening = state.withLock { state in
                let opening = state.machine.open(payload, deadline: deadline, now: RPCClock.now)
                if case .opened(let stream) = opening { state.calls[stream] = Call() }
                return opening
            }
            switch opening {
            case .opened(let stream):
                wakeTransport()
                return stream
            case .refused(let status): throw status
            case .wait:
                await mayOpen()
                if Task.isCancelled { throw RPCStatus(.cancelled, "The call was cancelled.") }
                if let deadline, RPCClock.now >= deadline {
                    throw RPCStatus(.deadlineExceeded, "The agent did not take the call in time.")
                }
            }
        }
    }

    private func mayOpen() async {
        let token = state.withLock { $0.openers.newToken() }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let waits = state.withLock { state in
                    guard !Task.isCancelled, state.machine.mustWait else { return false }
                    state.openers.add(token, stream: nil, continuation)
                    return true
                }
                if !waits { continuation.resume() }
            }
        } onCancel: {
            for waiter in state.withLock({ $0.openers.take(token) }) { waiter.resume() }
        }
    }

    /// The call's next message, or how it ended. Cancelling the task cancels the call. One task at a time.
    func next(_ stream: UInt32) async -> Next {
        while true {
            if Task.isCancelled { cancel(stream) }
            if let next = takeNext(stream) { return next }
            await withTaskCancellationHandler {
                await withCheckedContinuation { continuation in
                    let waits = state.withLock { state in
                        guard !Task.isCancelled, let call = state.calls[stream], call.status == nil,
                            call.taken == call.messages.count
                        else { return false }
                        precondition(call.waiter == nil, "two tasks take the responses of one call")
                        state.calls[stream]?.waiter = continuation
                        return true
                    }
                    if !waits { continuation.resume() }
                }
            } onCancel: {
                cancel(stream)
            }
        }
    }

    private func takeNext(_ stream: UInt32) -> Next? {
        let next = state.withLock { state -> Next? in
            guard var call = state.calls[stream] else {
                return .ended(RPCStatus(.cancelled, "The call was cancelled."))
            }
            guard call.taken < call.messages.count else { return call.status.map { .ended($0) } }
            let message = call.messages[call.taken]
            call.messages[call.taken] = []
            call.taken += 1
            if call.taken == call.messages.count || call.taken >= 1024 {
                call.messages.removeFirst(call.taken)
                call.taken = 0
            }
            state.calls[stream] = call
            state.machine.took(message.count, of: stream, now: RPCClock.now)
            return .message(message)
        }
        if case .message = next { wakeTransport() }
        return next
    }

    /// Ends the call if it has not ended.
    func cancel(_ stream: UInt32) {
        cancel(stream, RPCStatus(.cancelled, "The call was cancelled."))
    }

    /// Nobody will ask for the call again.
    func forget(_ stream: UInt32) {
        cancel(stream)
        state.withLock { $0.calls[stream] = nil }
    }

    private func cancel(_ stream: UInt32, _ status: RPCStatus) {
        perform(state.withLock { $0.machine.cancel(stream, status, now: RPCClock.now) })
    }

    private func perform(_ effects: [ClientMachine.Effect]) {
        for effect in effects {
            switch effect {
            case .ready:
                resumeWatchers { $0.isReady = true }
            case .pong(let token):
                resumeWatchers { if token != 0, token <= $0.lastPing { $0.pongs.insert(token) } }
            case .closedForCalls(let status):
                resumeWatchers { $0.closed = status }
            case .mayOpen:
                for waiter in state.withLock({ $0.openers.takeAll() }) { waiter.resume() }
            case .message(let stream, let message):
                let isTooMuch = change(stream) { call in
                    call.messages.append(message)
                    return call.messages.count - call.taken > Self.maxQueuedMessages
                }
                if isTooMuch == true {
                    cancel(stream, RPCStatus(.resourceExhausted, "Too many responses came at once."))
                }
            case .ended(let stream, let status):
                change(stream) { call in
                    if status.code == .cancelled { call.messages = []; call.taken = 0 }
                    call.status = call.status ?? status
                }
            }
        }
        if !effects.isEmpty { wakeTransport() }
    }

    private func resumeWatchers(_ change: (inout State) -> Void) {
        let watchers = state.withLock { state in
            change(&state)
            return state.watchers.takeAll()
        }
        for watcher in watchers { watcher.resume() }
    }

    /// Changes what is known of a call, and wakes who waits for it. Nil if it was forgotten.
    @discardableResult
    private func change<R: Sendable>(_ stream: UInt32, _ change: (inout Call) -> R) -> R? {
        let (result, waiter) = state.withLock { state -> (R?, CheckedContinuation<Void, Never>?) in
            guard var call = state.calls[stream] else { return (nil, nil) }
            let result = change(&call)
            let waiter = call.waiter
            call.waiter = nil
            state.calls[stream] = call
            return (result, waiter)
        }
        waiter?.resume()
        return result
    }

    private func wakeTransport() {
        let wake = state.withLock { state -> (@Sendable () -> Void)? in
            if state.isWoken { return nil }
            guard let wake = state.wake else { return nil }
            state.isWoken = true
            return wake
        }
        wake?()
    }
}
