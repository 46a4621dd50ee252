internal import DriveBackupWire

/// The client's side of a connection: which calls there are, and what frames do to them. As `ServerMachine`, a
/// state machine without input, output or tasks.
struct ClientMachine {
    enum Effect: Equatable {
        /// The server's HELLO has arrived: calls can be made.
        case ready
        case message(stream: UInt32, [UInt8])
        /// The last of a call.
        case ended(stream: UInt32, RPCStatus)
        case pong(UInt64)
        /// No call can be made on this connection any more.
        case closedForCalls(RPCStatus)
        /// Calls that waited for room may try again.
        case mayOpen
    }

    enum Opening: Equatable {
        case opened(stream: UInt32)
        /// Wait for `mayOpen`.
        case wait
        case refused(RPCStatus)
    }

    private struct Call {
        var deadline: Int64?
        /// How many bytes of messages the server may send before we take some.
        var credit: Int
        /// How many bytes were taken that the server was not given back yet.
        var taken = 0
    }

    private(set) var link: Link
    private let window: Int
    private let maxPayload: Int
    private let briskWait: Int64
    private var calls: [UInt32: Call] = [:]
    private var nextStream: UInt32 = 1
    /// Why no call can be made any more.
    private var closed: RPCStatus?
    private var wasCongested = false
    private var nextDeadline = Int64.max

    init(limits: RPCLimits, now: Int64) {
        window = limits.initialCredit
        maxPayload = limits.maxPayload
        briskWait = Int64(0).adding(limits.briskWait)
        link = Link(limits: limits, now: now)
    }

    var openCalls: Int { calls.count }
    /// The largest CALL payload that the server takes.
    var maxRequest: Int { link.peer?.maxPayload ?? FrameHeader.maxPayloadBeforeHello }

    // MARK: What the caller does

    /// Sends a call, if the connection has room. `payload` is a CALL of at most `maxRequest` bytes.
    mutating func open(_ payload: [UInt8], deadline: Int64?, now: Int64) -> Opening {
        if let closed { return .refused(closed) }
        if nextStream > UInt32.max - 2 {
            return .refused(RPCStatus(.unavailable, "The connection has used up its streams; connect again."))
        }
        if link.isCongested {
            wasCongested = true
            return .wait
        }
        let stream = nextStream
        nextStream += 2
        calls[stream] = Call(deadline: deadline, credit: window)
        nextDeadline = min(nextDeadline, deadline ?? .max)
        link.append(.call, stream: stream, isEnd: true, payload: payload, now: now)
        return .opened(stream: stream)
    }

    /// Whether `open` would make the caller wait.
    var mustWait: Bool { closed == nil && link.isCongested }

    /// The caller has taken a message of so many bytes.
    mutating func took(_ bytes: Int, of stream: UInt32, now: Int64) {
        guard var call = calls[stream] else { return }
        call.taken += bytes
        // Half a window at a time: few CREDITs, and the server never waits for one while we wait for it.
        if call.taken * 2 >= window {
            var credit = Frames.Credit()
            credit.bytes = UInt64(call.taken)
            link.append(.credit, stream: stream, payload: credit.encoded, now: now)
            call.credit += call.taken
            call.taken = 0
        }
        calls[stream] = call
    }

    /// Ends a call: the server is told, and nothing more comes of it.
    mutating func cancel(_ stream: UInt32, _ status: RPCStatus, now: Int64) -> [Effect] {
        guard calls.removeValue(forKey: stream) != nil else { return [] }
        var cancel = Frames.Cancel()
        cancel.reason = status.code == .cancelled ? "" : status.message.replacing("\0", with: "\u{FFFD}")
        link.append(.cancel, stream: stream, isEnd: true, payload: cancel.encoded, now: now)
        return [.ended(stream: stream, status)]
    }

    mutating func ping(token: UInt64, now: Int64) {
        link.ping(token: token, now: now)
    }

    /// Ends the connection and all its calls.
    mutating func close(_ status: RPCStatus, now: Int64) -> [Effect] {
        var effects: [Effect] = []
        end(status, now: now, &effects)
        link.end(status, abruptly: true, now: now)
        return effects
    }

    // MARK: What the server does

    mutating func receive(_ bytes: UnsafeRawBufferPointer, now: Int64) -> [Effect] {
        var effects: [Effect] = []
        var input = bytes
        do throws(FramingError) {
            while let event = try link.next(&input, now: now) {
                try take(event, now: now, &effects)
            }
        } catch {
            fail(error.status, now: now, &effects)
        }
        return effects
    }

    private mutating func take(
        _ event: consuming Link.Event, now: Int64, _ effects: inout [Effect]
    ) throws(FramingError) {
        switch event {
        case .hello: effects.append(.ready)
        case .pong(let token): effects.append(.pong(token))
        case .goAway(let lastStream, let status):
            goingAway(lastStream: lastStream, status, &effects)
        case .oversize(let header):
            guard try find(header) != nil else { return }
            let status = RPCStatus(
                .resourceExhausted,
                "An answer of \(header.length) bytes came, this side takes at most \(maxPayload).")
            effects += cancel(header.stream, status, now: now)
        case .frame(let header, let payload):
            try take(header, payload, now: now, &effects)
        }
    }

    private mutating func take(
        _ header: FrameHeader, _ payload: consuming [UInt8], now: Int64, _ effects: inout [Effect]
    ) throws(FramingError) {
        switch header.type {
        case .message:
            guard let index = try find(header) else { return }
            guard calls.values[index].credit > 0 else {
                let status = RPCStatus(.internal, "The server sent more than it had credit for.")
                effects += cancel(header.stream, status, now: now)
                return
            }
            calls.values[index].credit -= payload.count
            effects.append(.message(stream: header.stream, payload))
        case .status:
            guard let index = try find(header) else { return }
            calls.remove(at: index)
            let status: RPCStatus
            do throws(WireError) {
                status = try RPCStatus(Frames.Status.decode(payload, limits: .response))
            } catch {
                status = RPCStatus(.internal, "The call's STATUS cannot be decoded: \(error.message).")
            }
            effects.append(.ended(stream: header.stream, status))
        case .credit, .cancel:
            // We send each request whole with its CALL and need no credit; a server ends calls by STATUS.
            _ = try find(header)
        case .call:
            throw FramingError("a server makes no calls")
        case .hello, .ping, .pong, .goAway:
            preconditionFailure("frames about the connection are the link's")
        }
    }

    /// The call that a frame belongs to; nil if it has ended.
    private func find(_ header: FrameHeader) throws(FramingError) -> Dictionary<UInt32, Call>.Index? {
        guard header.stream % 2 == 1, header.stream < nextStream else {
            throw FramingError("stream \(header.stream) was never opened")
        }
        return calls.index(forKey: header.stream)
    }

    private mutating func goingAway(lastStream: UInt32, _ status: RPCStatus, _ effects: inout [Effect]) {
        let why =
            status.message.isEmpty ? "The agent takes no more calls on this connection." : status.message
        refuseCalls(RPCStatus(.unavailable, why, details: status.details), &effects)
        for stream in calls.keys where stream > lastStream {
            calls[stream] = nil
            effects.append(.ended(stream: stream, RPCStatus(.unavailable, why, details: status.details)))
        }
    }

    // MARK: The connection

    /// The transport is gone.
    mutating func disconnected(_ status: RPCStatus) -> [Effect] {
        var effects: [Effect] = []
        link.close(status)
        end(closed ?? status, now: 0, &effects)
        return effects
    }

    /// Somebody waits for `mayOpen`.
    mutating func noteOpener() { wasCongested = wasCongested || link.isCongested }

    mutating func wrote(_ count: Int, now: Int64) -> [Effect] {
        link.wrote(count, now: now)
        guard wasCongested, !link.isCongested else { return [] }
        wasCongested = false
        return [.mayOpen]
    }

    mutating func tick(now: Int64) -> [Effect] {
        var effects: [Effect] = []
        if let status = link.tick(now: now) {
            if link.phase == .closed {
                end(status, now: now, &effects)
            } else {
                fail(status, now: now, &effects)
            }
        }
        guard now >= nextDeadline else { return effects }
        nextDeadline = .max
        for (stream, call) in calls {
            guard let deadline = call.deadline else { continue }
            if now >= deadline {
                let status = RPCStatus(.deadlineExceeded, "The agent did not answer in time.")
                effects += cancel(stream, status, now: now)
            } else {
                nextDeadline = min(nextDeadline, deadline)
            }
        }
        return effects
    }

    mutating func work(now: Int64) -> TransportWork {
        var work = link.work(now: now)
        // The server's answers are always read, or both sides might wait for each other.
        work.wantsRead = true
        if nextDeadline != .max, link.phase != .closed {
            work.timer = min(work.timer ?? nextDeadline, nextDeadline)
        }
        if !calls.isEmpty { work.briskWait = briskWait }
        return work
    }

    private mutating func fail(_ status: RPCStatus, now: Int64, _ effects: inout [Effect]) {
        link.goAway(lastStream: 0, status, now: now)
        link.end(status, abruptly: true, now: now)
        end(RPCStatus(.unavailable, status.message), now: now, &effects)
    }

    private mutating func end(_ status: RPCStatus, now: Int64, _ effects: inout [Effect]) {
        refuseCalls(status, &effects)
        for stream in calls.keys { effects.append(.ended(stream: stream, status)) }
        calls = [:]
    }

    private mutating func refuseCalls(_ status: RPCStatus, _ effects: inout [Effect]) {
        guard closed == nil else { return }
        closed = status
        effects.append(.closedForCalls(status))
        effects.append(.mayOpen)
    }
}
