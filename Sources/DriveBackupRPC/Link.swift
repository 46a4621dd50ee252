internal import DriveBackupWire

/// What the other side said of itself in its HELLO.
struct PeerSettings: Equatable {
    /// The largest payload it takes, in bytes.
    var maxPayload: Int
    /// How many bytes of messages we may send on a new stream.
    var initialCredit: Int
    var software: String
}

/// What a transport has to do for a connection.
struct TransportWork {
    enum Ending { case none, halfClose, close }

    /// To be sent now. Nothing more comes until `wrote` has been called for all of it.
    var bytes: [UInt8] = []
    /// Whether the connection takes more bytes now.
    var wantsRead = true
    /// What to do once `bytes` are sent.
    var ending = Ending.none
    /// Whether to ask again as soon as `bytes` are sent; otherwise whoever has something to send wakes the transport.
    var asksAgain = false
    /// How long the peer's next bytes may be waited for awake, in nanoseconds, once `bytes` are sent.
    var briskWait: Int64 = 0
    /// When to ask again at the latest, in nanoseconds of the transport's clock.
    var timer: Int64?
}

/// One side of a connection, below its calls: HELLO, PING, GOAWAY, what waits to be sent, and all that is a
/// question of time. A state machine: bytes and instants come in, frames and work for the transport go out.
///
/// Instants are nanoseconds of any clock that only goes forward.
struct Link {
    enum Phase: Equatable {
        /// Our HELLO is sent, the peer's has not arrived.
        case awaitingHello
        case open
        /// What is pending is still sent; what arrives is thrown away.
        case ending
        case closed
    }

    enum Event: Equatable {
        case hello(PeerSettings)
        /// A frame about a call.
        case frame(FrameHeader, payload: [UInt8])
        /// A frame about a call, whose payload is skipped.
        case oversize(FrameHeader)
        case pong(UInt64)
        case goAway(lastStream: UInt32, RPCStatus)
    }

    /// So many bytes of an unfinished frame are a sign of life; fewer might be somebody who keeps us busy.
    private static let signOfLifeBytes = 16 << 10

    private(set) var phase = Phase.awaitingHello
    private(set) var peer: PeerSettings?
    /// Why the connection ended, once it has.
    private(set) var reason: RPCStatus?
    private(set) var hasSentGoAway = false

    private let limits: RPCLimits
    /// Of `limits`, in nanoseconds: they are looked at with every frame.
    private let writeTimeout: Int64
    private let idleInterval: Int64
    private let pingTimeout: Int64
    private var decoder = FrameDecoder(limit: FrameHeader.maxPayloadBeforeHello)
    private var outbox: [UInt8] = []
    private var bytesBeingWritten = 0
    private var hasHalfClosed = false

    private let handshakeDeadline: Int64
    private var lastHeard: Int64
    private var lastWriteProgress: Int64
    private var bytesSinceHeard = 0
    private var pingSentAt: Int64?
    private var lingerDeadline: Int64?
    private var lingers = false

    init(limits: RPCLimits, now: Int64) {
        self.limits = limits
        writeTimeout = Int64(0).adding(limits.writeTimeout)
        idleInterval = Int64(0).adding(limits.idleInterval)
        pingTimeout = Int64(0).adding(limits.pingTimeout)
        handshakeDeadline = now.adding(limits.handshakeTimeout)
        lastHeard = now
        lastWriteProgress = now
        var hello = Frames.Hello()
        hello.protocolVersion = 1
        hello.maxPayload = UInt32(limits.maxPayload)
        hello.initialCredit = UInt64(limits.initialCredit)
        hello.software = limits.software
        append(.hello, stream: 0, payload: hello.encoded, now: now)
    }

    // MARK: Receiving

    /// Takes bytes off the front of `input` until something has happened that the calls must know; nil if all
    /// were taken before.
    mutating func next(
        _ input: inout UnsafeRawBufferPointer, now: Int64,
        admits: (FrameHeader, Int) -> Bool = { _, _ in true }
    ) throws(FramingError) -> Event? {
        let before = input.count
        defer { heard(before - input.count, now: now) }
        while phase == .open || phase == .awaitingHello {
            guard let event = try decoder.next(&input, admits: admits) else { return nil }
            bytesSinceHeard = Self.signOfLifeBytes
            switch event {
            case .oversize(let header):
                if header.stream == 0 || phase == .awaitingHello || !header.type.isMessage {
                    throw FramingError(
                        "a frame of type \(header.type.rawValue) has \(header.length) bytes, "
                            + "the limit is \(decoder.limit(for: header.type))")
                }
                return .oversize(header)
            case .frame(let header, let payload):
                if phase == .awaitingHello { return try .hello(takeHello(header, payload)) }
                if let event = try take(header, payload, now: now) { return event }
            }
        }
        input = UnsafeRawBufferPointer(rebasing: input.suffix(0))
        return nil
    }

    private mutating func take(
        _ header: FrameHeader, _ payload: consuming [UInt8], now: Int64
    ) throws(FramingError) -> Event? {
        switch header.type {
        case .hello:
            throw FramingError("HELLO came a second time")
        case .ping:
            // A PING that cannot be decoded asks nothing; as any frame it is a sign of life.
            if let ping = try? Frames.Ping.decode(payload) {
                var pong = Frames.Pong()
                pong.token = ping.token
                append(.pong, stream: 0, payload: pong.encoded, now: now)
            }
            return nil
        case .pong:
            // As above.
            guard let pong = try? Frames.Pong.decode(payload) else { return nil }
            return .pong(pong.token)
        case .goAway:
            // Without its reason it still says that the peer goes.
            let goAway = (try? Frames.GoAway.decode(payload, limits: .response)) ?? Frames.GoAway()
            let status = goAway.status.map { RPCStatus($0) } ?? RPCStatus(.unavailable)
            return .goAway(lastStream: goAway.lastStream, status)
        case .call, .message, .status, .cancel, .credit:
            return .frame(header, payload: payload)
        }
    }

    private mutating func takeHello(
        _ header: FrameHeader, _ payload: [UInt8]
    ) throws(FramingError) -> PeerSettings {
        guard header.type == .hello else {
            throw FramingError("the first frame has type \(header.type.rawValue), it must be HELLO")
        }
        let hello: Frames.Hello
        do throws(WireError) {
            hello = try Frames.Hello.decode(payload, limits: .response)
        } catch {
            throw FramingError("HELLO cannot be decoded: \(error.message)")
        }
        guard hello.protocolVersion == 1 else {
            throw FramingError(
                "HELLO has protocol version \(hello.protocolVersion), this side speaks version 1",
                code: .failedPrecondition)
        }
        let maxPayload = hello.maxPayload == 0 ? FrameHeader.maxPayload : Int(hello.maxPayload)
        guard maxPayload >= 64 else {
            throw FramingError("HELLO has max_payload \(maxPayload), less than 64 bytes is of no use")
        }
        let settings = PeerSettings(
            maxPayload: min(maxPayload, FrameHeader.maxPayload),
            initialCredit: Int(clamping: hello.initialCredit), software: hello.software)
        peer = settings
        decoder.limit = limits.maxPayload
        phase = .open
        return settings
    }

    private mutating func heard(_ bytes: Int, now: Int64) {
        bytesSinceHeard += bytes
        guard bytesSinceHeard >= Self.signOfLifeBytes else { return }
        bytesSinceHeard = 0
        lastHeard = now
        pingSentAt = nil
    }

    // MARK: Sending

    /// Bytes that wait for the peer, in memory of ours.
    var pendingBytes: Int { outbox.count + bytesBeingWritten }
    /// Whether messages have to wait until the peer has read some.
    var isCongested: Bool { pendingBytes >= limits.maxPendingBytes }

    mutating func append(
        _ type: FrameType, stream: UInt32, isEnd: Bool = false, payload: [UInt8], now: Int64
    ) {
        guard phase == .open || phase == .awaitingHello else { return }
        if pendingBytes == 0 { lastWriteProgress = now }
        FrameHeader(length: payload.count, stream: stream, type: type, isEnd: isEnd).append(to: &outbox)
        outbox.append(contentsOf: payload)
    }

    /// Tells the peer that no new calls are taken.
    mutating func goAway(lastStream: UInt32, _ status: RPCStatus, now: Int64) {
        guard !hasSentGoAway else { return }
        var frame = Frames.GoAway()
        frame.lastStream = lastStream
        frame.status = status.frame
        var payload = frame.encoded
        if payload.count > peer?.maxPayload ?? FrameHeader.maxPayloadBeforeHello {
            frame.status?.details = []
            frame.status?.metadata = []
            frame.status?.message = ""
            payload = frame.encoded
        }
        append(.goAway, stream: 0, payload: payload, now: now)
        hasSentGoAway = true
    }

    /// Ends the connection once what is pending is sent. With `abruptly`, the peer has no more than
    /// `lingerTimeout` to read it.
    mutating func end(_ status: RPCStatus, abruptly: Bool, now: Int64) {
        if phase == .ending, abruptly {
            // It had all the time it wanted until now.
            lingerDeadline = min(lingerDeadline ?? .max, now.adding(limits.lingerTimeout))
        }
        guard phase == .open || phase == .awaitingHello else { return }
        reason = status
        phase = .ending
        if abruptly { lingerDeadline = now.adding(limits.lingerTimeout) }
    }

    /// The transport is gone, or is to be closed whatever is pending.
    mutating func close(_ status: RPCStatus) {
        if reason == nil { reason = status }
        phase = .closed
        outbox = []
    }

    /// Asks the peer for a sign of life.
    mutating func ping(token: UInt64, now: Int64) {
        var ping = Frames.Ping()
        ping.token = token
        append(.ping, stream: 0, payload: ping.encoded, now: now)
    }

    // MARK: The transport

    /// The transport has handed so many bytes to the system.
    mutating func wrote(_ count: Int, now: Int64) {
        bytesBeingWritten -= count
        lastWriteProgress = now
    }

    /// What there is to do for the transport.
    mutating func work(now: Int64) -> TransportWork {
        var work = TransportWork()
        if bytesBeingWritten == 0, !outbox.isEmpty {
            swap(&work.bytes, &outbox)
            bytesBeingWritten = work.bytes.count
        }
        // A peer that does not read its answers may not ask more. (A client's requests wait; its reading never
        // does: ClientMachine sends nothing because of what it reads but CREDIT and PONG.)
        work.wantsRead = pendingBytes < 2 * limits.maxPendingBytes + FrameHeader.maxPayload
        if phase == .closed {
            work.ending = .close
        } else if phase == .ending, pendingBytes == 0, !hasHalfClosed {
            hasHalfClosed = true
            if lingerDeadline == nil { lingerDeadline = now.adding(limits.lingerTimeout) }
            work.ending = .halfClose
        }
        work.asksAgain = phase == .ending || !work.wantsRead
        work.timer = nextTimer
        return work
    }

    private var nextTimer: Int64? {
        var timer: Int64?
        func consider(_ instant: Int64?) {
            if let instant { timer = min(timer ?? instant, instant) }
        }
        if pendingBytes > 0 { consider(lastWriteProgress.adding(nanoseconds: writeTimeout)) }
        switch phase {
        case .awaitingHello: consider(handshakeDeadline)
        case .open:
            consider(
                pingSentAt.map { $0.adding(nanoseconds: pingTimeout) }
                    ?? lastHeard.adding(nanoseconds: idleInterval))
        case .ending: consider(lingerDeadline)
        case .closed: return nil
        }
        return timer
    }

    /// Time has passed. Returns why the connection has to end now, if it has.
    mutating func tick(now: Int64) -> RPCStatus? {
        if pendingBytes > 0, now >= lastWriteProgress.adding(nanoseconds: writeTimeout), phase != .closed {
            let status = RPCStatus(
                .unavailable, "The other side has read nothing for \(limits.writeTimeout), it was cut off.")
            close(status)
            return status
        }
        switch phase {
        case .awaitingHello where now >= handshakeDeadline:
            return RPCStatus(
                .deadlineExceeded, "The connection ends: no HELLO came within \(limits.handshakeTimeout).")
        case .open:
            if let sent = pingSentAt {
                if now >= sent.adding(nanoseconds: pingTimeout) {
                    return RPCStatus(
                        .unavailable,
                        "The connection ends: the other side has not answered a PING for "
                            + "\(limits.pingTimeout).")
                }
            } else if now >= lastHeard.adding(nanoseconds: idleInterval) {
                ping(token: 0, now: now)
                pingSentAt = now
            }
        case .ending:
            if let lingerDeadline, now >= lingerDeadline {
                close(RPCStatus(.unavailable, "The connection was closed."))
            }
        case .awaitingHello, .closed: break
        }
        return nil
    }
}

extension Int64 {
    /// The instant so much later; the last one there is if that is beyond it.
    func adding(_ duration: Duration) -> Int64 {
        let (seconds, attoseconds) = duration.components
        let (scaled, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        if overflow { return .max }
        return adding(nanoseconds: scaled).adding(nanoseconds: attoseconds / 1_000_000_000)
    }

    /// As above.
    func adding(nanoseconds: Int64) -> Int64 {
        let (result, overflow) = addingReportingOverflow(nanoseconds)
        return overflow ? .max : result
    }
}

extension WireMessage {
    /// The encoding of a message in which no string has a NUL.
    var encoded: [UInt8] {
        do {
            return try encode()
        } catch {
            preconditionFailure("a message of our own cannot be encoded: \(error)")
        }
    }
}
