internal import DriveBackupWire

/// The server's side of a connection: which calls there are, what each may send, and what frames do to them.
///
/// A state machine without input, output or tasks. What arrives goes into `receive`, what handlers do into `send`
/// and `finish`, and time into `tick`; each returns what has to be done about calls, and the frames to be sent
/// gather in `link`. A call that has ended is forgotten: frames that were under way to it are ignored.
struct ServerMachine {
    enum Effect: Equatable {
        /// Start the handler; call `handlerEnded` when it has returned.
        case dispatch(IncomingCall)
        /// Cancel the handler: its call has ended, and nothing that it still says will be sent.
        case cancel(stream: UInt32)
        /// The call may send again.
        case maySend(stream: UInt32)
        /// All calls may try again to send.
        case allMaySend
    }

    enum Sending: Equatable {
        case sent
        /// Wait for `maySend`.
        case wait
        case ended
    }

    private struct Call {
        var method: String
        var metadata: [RPCMetadata]
        var deadline: Int64?
        /// What the budget has given for it.
        var charge: Int
        /// How many bytes of messages the client takes now. Negative after a message that was larger than it.
        var credit: Int
        /// Whether the handler has been started.
        var isDispatched = false
        /// The request, when it came without END.
        var request: [UInt8]?
        /// The client sends no more.
        var isRequestDone = false
    }

    /// What a call costs of the budget beside its request.
    static let chargeOfCall = 1024

    private(set) var link: Link
    private let limits: RPCLimits
    private let budget: ByteBudget
    private let briskWait: Int64
    private let knows: @Sendable (String) -> Bool

    private var calls: [UInt32: Call] = [:]
    /// What the budget has given for each handler that has not returned, whether or not its call has ended.
    private var handlers: [UInt32: Int] = [:]
    /// How many of `calls` have a handler.
    private var dispatchedCalls = 0
    private var lastStream: UInt32 = 0
    /// What the budget has given for the frame that is arriving.
    private var chargeOfFrame = 0
    private var wasCongested = false
    private var nextDeadline = Int64.max

    init(limits: RPCLimits, budget: ByteBudget, now: Int64, knows: @escaping @Sendable (String) -> Bool) {
        self.limits = limits
        self.budget = budget
        self.knows = knows
        briskWait = Int64(0).adding(limits.briskWait)
        link = Link(limits: limits, now: now)
    }

    /// Calls that have not ended.
    var openCalls: Int { calls.count }
    /// Handlers that have not returned.
    var runningHandlers: Int { handlers.count }
    /// Whether this call's handler has not returned.
    func isRunning(_ stream: UInt32) -> Bool { handlers[stream] != nil }

    // MARK: What the client does

    mutating func receive(_ bytes: UnsafeRawBufferPointer, now: Int64) -> [Effect] {
        var effects: [Effect] = []
        var input = bytes
        do throws(FramingError) {
            while let event = try nextEvent(&input, now: now) {
                switch event {
                case .hello, .pong: break
                case .goAway: break  // It makes no new calls; those that it has made go on.
                case .oversize(let header): try takeOversize(header, now: now, &effects)
                case .frame(let header, let payload): try take(header, payload, now: now, &effects)
                }
            }
        } catch {
            fail(error.status, now: now, &effects)
        }
        return effects
    }

    private mutating func nextEvent(
        _ input: inout UnsafeRawBufferPointer, now: Int64
    ) throws(FramingError) -> Link.Event? {
        // Requests are held in memory from their first byte on, and what counts is what has arrived: to promise much
        // and send little takes nothing from others.
        var taken = 0
        let budget = budget
        defer { chargeOfFrame += taken }
        return try link.next(&input, now: now) { header, count in
            guard header.type == .call || header.type == .message else { return true }
            let charge = count == 0 ? Self.chargeOfCall : count
            guard budget.take(charge) else { return false }
            taken += charge
            return true
        }
    }

    private mutating func takeOversize(
        _ header: FrameHeader, now: Int64, _ effects: inout [Effect]
    ) throws(FramingError) {
        budget.give(chargeOfFrame)
        chargeOfFrame = 0
        if header.type == .call {
            try open(header)
        } else {
            guard try isOpen(header) else { return }
        }
        let problem =
            header.length > limits.maxPayload
            ? "a frame of it has \(header.length) bytes, the limit is \(limits.maxPayload)"
            : "the server holds \(limits.maxBytesInFlight) bytes of requests already, try again later"
        end(
            header.stream, RPCStatus(.resourceExhausted, "The call was refused: \(problem)."), now: now,
            &effects)
    }

    private mutating func take(
        _ header: FrameHeader, _ payload: [UInt8], now: Int64, _ effects: inout [Effect]
    ) throws(FramingError) {
        let charge = chargeOfFrame
        chargeOfFrame = 0
        switch header.type {
        case .call:
            do throws(FramingError) {
                try open(header)
            } catch {
                budget.give(charge)
                throw error
            }
            takeCall(header, payload, charge: charge, now: now, &effects)
        case .message:
            if calls[header.stream]?.isDispatched == false {
                calls[header.stream]?.charge += charge
            } else {
                budget.give(charge)  // The payload is thrown away.
            }
            guard try isOpen(header) else { return }
            takeMessage(header, payload, now: now, &effects)
        case .cancel:
            guard try isOpen(header) else { return }
            // The reason is for logs; without one the call is cancelled all the same.
            let reason = (try? Frames.Cancel.decode(payload))?.reason ?? ""
            let message = "The caller cancelled the call" + (reason.isEmpty ? "." : ": \(reason)")
            end(header.stream, RPCStatus(.cancelled, message), now: now, &effects)
        case .credit:
            guard try isOpen(header) else { return }
            do throws(WireError) {
                let credit = try Frames.Credit.decode(payload)
                addCredit(Int(clamping: credit.bytes), to: header.stream, &effects)
            } catch {
                let status = RPCStatus(.invalidArgument, "A CREDIT cannot be decoded: \(error.message).")
                end(header.stream, status, now: now, &effects)
            }
        case .status:
            throw FramingError("a client sends no STATUS")
        case .hello, .ping, .pong, .goAway:
            preconditionFailure("frames about the connection are the link's")
        }
    }

    /// Checks a new call's stream.
    private mutating func open(_ header: FrameHeader) throws(FramingError) {
        guard header.stream % 2 == 1 else {
            throw FramingError("a client's stream is odd, \(header.stream) is not")
        }
        guard header.stream > lastStream else {
            throw FramingError("stream \(header.stream) is not above \(lastStream), the last one")
        }
        lastStream = header.stream
    }

    /// Whether the frame's call is open; false if it has ended.
    private func isOpen(_ header: FrameHeader) throws(FramingError) -> Bool {
        guard header.stream % 2 == 1, header.stream <= lastStream else {
            throw FramingError("stream \(header.stream) was never opened")
        }
        return calls[header.stream] != nil
    }

    private mutating func takeCall(
        _ header: FrameHeader, _ payload: [UInt8], charge: Int, now: Int64, _ effects: inout [Effect]
    ) {
        let stream = header.stream
        var call = Call(
            method: "", metadata: [], deadline: nil, charge: charge, credit: link.peer?.initialCredit ?? 0)
        let frame: Frames.Call
        do throws(RPCStatus) {
            frame = try checkedCall(payload)
        } catch {
            calls[stream] = call
            end(stream, error, now: now, &effects)
            return
        }
        call.method = frame.method
        call.metadata = frame.metadata.map { RPCMetadata(key: $0.key, value: $0.value) }
        if frame.timeoutNs > 0 {
            let (sum, overflow) = now.addingReportingOverflow(Int64(clamping: frame.timeoutNs))
            call.deadline = overflow ? nil : sum
            nextDeadline = min(nextDeadline, call.deadline ?? .max)
        }
        // Without END, an empty message says that the request comes in a MESSAGE.
        if header.isEnd || !frame.message.isEmpty { call.request = frame.message }
        call.isRequestDone = header.isEnd
        dispatchIfReady(&call, stream, &effects)
        calls[stream] = call
    }

    /// The call that `payload` describes, if it can be taken.
    private func checkedCall(_ payload: [UInt8]) throws(RPCStatus) -> Frames.Call {
        if link.hasSentGoAway {
            throw RPCStatus(
                .unavailable, "The agent takes no new calls on this connection.", reason: "AGENT_STOPPING")
        }
        // Handlers that run on though their calls have ended count, too.
        if calls.count + handlers.count - dispatchedCalls >= limits.maxCallsPerConnection {
            throw RPCStatus(
                .resourceExhausted,
                "A connection can have \(limits.maxCallsPerConnection) calls at once, this one has them.")
        }
        let frame = try Frames.Call(checking: payload)
        guard knows(frame.method) else {
            throw RPCStatus(.unimplemented, "There is no method \"\(frame.method)\".")
        }
        return frame
    }

    private mutating func takeMessage(
        _ header: FrameHeader, _ payload: [UInt8], now: Int64, _ effects: inout [Effect]
    ) {
        guard var call = calls[header.stream] else { return }
        // A bare END after the request is no second request.
        let isBareEnd = header.isEnd && payload.isEmpty && call.request != nil
        if call.isRequestDone || (call.request != nil && !isBareEnd) {
            let status = RPCStatus(.invalidArgument, "\(call.method) takes one request, a second one came.")
            end(header.stream, status, now: now, &effects)
            return
        }
        if !isBareEnd { call.request = payload }
        call.isRequestDone = header.isEnd
        dispatchIfReady(&call, header.stream, &effects)
        calls[header.stream] = call
    }

    private mutating func dispatchIfReady(_ call: inout Call, _ stream: UInt32, _ effects: inout [Effect]) {
        guard call.isRequestDone, let request = call.request else { return }
        call.isDispatched = true
        call.request = nil
        handlers[stream] = call.charge
        dispatchedCalls += 1
        effects.append(
            .dispatch(
                IncomingCall(
                    stream: stream, method: call.method, metadata: call.metadata, deadline: call.deadline,
                    request: request)))
    }

    private mutating func addCredit(_ bytes: Int, to stream: UInt32, _ effects: inout [Effect]) {
        guard var call = calls[stream] else { return }
        let (sum, overflow) = call.credit.addingReportingOverflow(bytes)
        call.credit = overflow ? .max : sum
        calls[stream] = call
        if call.credit > 0 { effects.append(.maySend(stream: stream)) }
    }

    // MARK: What handlers do

    /// The largest message that the client takes.
    var maxMessage: Int { link.peer?.maxPayload ?? 0 }

    /// What `send` would do now.
    func sending(on stream: UInt32) -> Sending {
        calls.index(forKey: stream).map(sending) ?? .ended
    }

    private func sending(at index: Dictionary<UInt32, Call>.Index) -> Sending {
        calls.values[index].credit > 0 && !link.isCongested ? .sent : .wait
    }

    /// Sends a message of at most `maxMessage` bytes, if the call has credit and the connection room.
    mutating func send(_ message: [UInt8], on stream: UInt32, now: Int64) -> Sending {
        guard let index = calls.index(forKey: stream) else { return .ended }
        let outcome = sending(at: index)
        if outcome == .sent {
            calls.values[index].credit -= message.count
            link.append(.message, stream: stream, payload: message, now: now)
        }
        wasCongested = wasCongested || link.isCongested
        return outcome
    }

    /// As `send`, `finish` with OK and `handlerEnded` in one, if the message may be sent now. Otherwise nothing has
    /// happened.
    mutating func answer(_ message: [UInt8], on stream: UInt32, now: Int64) -> Sending {
        let outcome = send(message, on: stream, now: now)
        if outcome == .sent {
            calls[stream] = nil
            dispatchedCalls -= 1
            // An empty STATUS is OK.
            link.append(.status, stream: stream, isEnd: true, payload: [], now: now)
            handlerEnded(stream)
            endIfDone(now: now)
        }
        return outcome
    }

    /// Ends a call with its STATUS. Does nothing if it has ended.
    mutating func finish(_ stream: UInt32, _ status: RPCStatus, now: Int64) -> [Effect] {
        var effects: [Effect] = []
        guard let call = calls.removeValue(forKey: stream) else { return [] }
        if call.isDispatched { dispatchedCalls -= 1 } else { budget.give(call.charge) }
        link.append(
            .status, stream: stream, isEnd: true, payload: status.encoded(limit: maxMessage), now: now)
        effects.append(.maySend(stream: stream))
        endIfDone(now: now)
        return effects
    }

    /// A dispatched call's handler has returned.
    mutating func handlerEnded(_ stream: UInt32) {
        guard let charge = handlers.removeValue(forKey: stream) else {
            preconditionFailure("the handler of stream \(stream) ended twice")
        }
        budget.give(charge)
    }

    private mutating func end(
        _ stream: UInt32, _ status: RPCStatus, now: Int64, _ effects: inout [Effect]
    ) {
        if calls[stream] == nil, stream == lastStream {
            // A call that was refused before it was one.
            link.append(
                .status, stream: stream, isEnd: true, payload: status.encoded(limit: maxMessage), now: now)
            return
        }
        if calls[stream]?.isDispatched == true { effects.append(.cancel(stream: stream)) }
        effects.append(contentsOf: finish(stream, status, now: now))
    }

    // MARK: The connection

    /// The agent stops: no new calls; those that run may end.
    mutating func shutDown(_ status: RPCStatus, now: Int64) {
        link.goAway(lastStream: lastStream, status, now: now)
        endIfDone(now: now)
    }

    /// Ends the connection at once, with a reason; for a peer that must not be here.
    mutating func refuse(_ status: RPCStatus, now: Int64) -> [Effect] {
        var effects: [Effect] = []
        fail(status, now: now, &effects)
        return effects
    }

    /// The transport is gone.
    mutating func disconnected(_ status: RPCStatus) -> [Effect] {
        link.close(status)
        return cancelAll()
    }

    /// Somebody waits for `maySend`, or for `allMaySend`.
    mutating func noteWaiter() { wasCongested = wasCongested || link.isCongested }

    mutating func wrote(_ count: Int, now: Int64) -> [Effect] {
        link.wrote(count, now: now)
        guard wasCongested, !link.isCongested else { return [] }
        wasCongested = false
        return [.allMaySend]
    }

    mutating func tick(now: Int64) -> [Effect] {
        var effects: [Effect] = []
        if let status = link.tick(now: now) {
            if link.phase == .closed {
                effects += cancelAll()
            } else {
                fail(status, now: now, &effects)
            }
        }
        guard now >= nextDeadline else { return effects }
        nextDeadline = .max
        for (stream, call) in calls {
            guard let deadline = call.deadline else { continue }
            if now >= deadline {
                end(
                    stream, RPCStatus(.deadlineExceeded, "\(call.method) took longer than its caller waits."),
                    now: now, &effects)
            } else {
                nextDeadline = min(nextDeadline, deadline)
            }
        }
        return effects
    }

    mutating func work(now: Int64) -> TransportWork {
        var work = link.work(now: now)
        if nextDeadline != .max, link.phase != .closed {
            work.timer = min(work.timer ?? nextDeadline, nextDeadline)
        }
        // With everything answered the next to speak is the client.
        if handlers.isEmpty { work.briskWait = briskWait }
        return work
    }

    private mutating func fail(_ status: RPCStatus, now: Int64, _ effects: inout [Effect]) {
        link.goAway(lastStream: lastStream, status, now: now)
        link.end(status, abruptly: true, now: now)
        effects += cancelAll()
    }

    /// Ends all calls without a word: there is nobody to hear it.
    private mutating func cancelAll() -> [Effect] {
        var effects: [Effect] = []
        for (stream, call) in calls {
            if call.isDispatched {
                effects.append(.cancel(stream: stream))
            } else {
                budget.give(call.charge)
            }
        }
        calls = [:]
        dispatchedCalls = 0
        budget.give(chargeOfFrame)
        chargeOfFrame = 0
        effects.append(.allMaySend)
        return effects
    }

    private mutating func endIfDone(now: Int64) {
        guard link.hasSentGoAway, calls.isEmpty else { return }
        link.end(RPCStatus(.unavailable, "The agent is stopping."), abruptly: false, now: now)
    }
}
