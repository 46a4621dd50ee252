internal import BlockIO
internal import Glibc

/// A client's requests to one export, on the engine of the export's device.
///
/// One task receives: it looks at all the requests that have arrived, does those that need not wait, and sends their replies
/// with one call. Short reads, and writes, that wait for nothing but the disk it begins, where the device tells when they have
/// ended; those that end together are answered together. For each of the others it starts a child task, which does the I/O
/// and leaves a reply; another task sends these, and what the socket had no room for. Read data leaves from the memory that
/// it was read into; a write's payload is whole before the device sees any of it. What is not sent counts against the client: with `maximumInFlight` requests, or
/// more memory than its share, it is not read from any more.
final class Transmission: Sendable {
    /// Requests whose replies have not left.
    static let maximumInFlight = 128

    /// Of how many requests the device is told before they are served. With more of them the first are out of the processor's caches
    /// before the last have come.
    private static let together = 8

    private static let payloadPiece = 1 << 20

    /// Longer requests take so long that it matters little who does them, and others wait meanwhile.
    static let maximumAtOnce = 64 << 10

    /// Writes may be longer: to wake a worker for one takes as long.
    private static let maximumWriteAtOnce = 256 << 10

    /// A longer write, too, where no other client of the export has to wait: while its payload is in the
    /// processor's cache.
    private static let maximumAlone = 1 << 20

    /// How often in a row one request has come alone from a client that has one on its way at a time.
    private static let lonely = 8

    /// Replies to what ends without a task wait for others that end in the same turn until they are one in so many of what the
    /// client has on its way: it goes on with these while the others are answered.
    private static let gatheredPart = 8

    struct State {
        var inFlight = 0
        /// How often in a row a request has come alone.
        var timesAlone = 0
        var outgoing: [Reply] = []
        /// How many of `outgoing` are ready in `sender`, which may have sent some of their bytes: not to be gathered again.
        var gathered = 0
        /// The receiver, which waits for a request to be over.
        var waitingForSlot: UnsafeContinuation<Void, Never>?
        /// The sender, which waits for replies.
        var waitingForReplies: UnsafeContinuation<Void, Never>?
        /// The sender, while another task sends by itself.
        var waitingForTurn: UnsafeContinuation<Void, Never>?
        /// Replies to what has ended without a task leave together, in a moment.
        var isSendingSoon = false
        /// Nothing more is received.
        var hasReceivedAll = false
        /// Nothing more is sent: replies are dropped.
        var isBroken = false
        var isEnding = false
        /// Failures that were told to the operator.
        var reports = 0
    }

    let engine: any IOEngine
    let device: any BlockDevice
    let memory: RequestMemory
    let account = RequestMemory.Account()
    let agreement: HandshakeMachine.Agreement
    let state: EngineIsolated<State>
    let sender: ReplySender
    /// Counts what moves; the watchdog sees whether it does.
    let progress: Progress
    let exportName: String
    let log: @Sendable (String) -> Void
    private let served: ServedExport
    private let socket: Socket
    private let input: ReceiveBuffer
    private let rules: RequestRules

    init(
        _ served: ServedExport, _ agreement: HandshakeMachine.Agreement, socket: Socket, input: ReceiveBuffer,
        memory: RequestMemory, progress: Progress, log: @escaping @Sendable (String) -> Void
    ) {
        self.served = served
        let export = served.export
        device = export.device
        engine = export.device.engine
        exportName = export.name
        self.agreement = agreement
        self.socket = socket
        self.input = input
        self.memory = memory
        self.progress = progress
        self.log = log
        state = EngineIsolated(State(), engine: export.device.engine)
        sender = ReplySender(socket, export.device.engine) { progress.outgoing.moved() }
        rules = RequestRules(
            size: export.device.size, isReadOnly: export.isReadOnly || export.device.isReadOnly,
            minimumBlock: max(1, export.device.limits.requestAlignment),
            hasStructuredReplies: agreement.hasStructuredReplies,
            hasAllocationContext: agreement.hasAllocationContext,
            maximumUnfragmented: UInt32(RequestMemory.maximumPiece))
    }

    /// Serves until the client leaves, or is cut off, and all its requests are over. Runs on the engine.
    func run() async {
        engine.preconditionCurrent()
        await withDiscardingTaskGroup { group in
            group.addTask { await self.sendReplies() }
            await receiveRequests(&group)
            state.value.hasReceivedAll = true
            progress.hangUp()
            state.value.waitingForReplies.take()?.resume()
        }
        memory.close(account)
    }

    /// Refuses new requests; the client is disconnected when those that run are over.
    func beginEnding() {
        state.value.isEnding = true
        if state.value.inFlight == 0 { cutOff() }
    }

    /// Disconnects at once, on whatever thread; requests that the device has still run to their end.
    func cutOff() {
        memory.close(account)
        socket.shutDown()
    }

    // MARK: Receiving

    private func receiveRequests(_ group: inout DiscardingTaskGroup) async {
        var gathering = Gathering()
        while true {
            var batch = Gathering.Batch()
            while input.count >= RequestHeader.byteCount {
                if batch.requests % Self.together == 0 { device.expectWrites { self.nextShortWrites() } }
                guard let request = RequestHeader(input.bytes) else {
                    report("a request does not start as requests do")
                    return cutOff()
                }
                // A short payload is looked at when it is whole: the rest of it follows at once, or with others.
                if request.hasShortPayload, input.count < RequestHeader.byteCount + Int(request.length) {
                    break
                }
                input.drop(RequestHeader.byteCount)
                batch.add(request)
                // Functions that may wait cost a change of executor even when they do not: most requests need none.
                var buffer: IOBuffer?
                if serveAtOnce(request, &buffer) { continue }
                sendAtOnce()
                await waitForSlot()
                guard await begin(request, buffer, &group) else { return }
            }
            sendAtOnce()
            let isLonely = state.withState { state in
                // With a piece of the next one behind it none was alone.
                if batch.requests > 0 {
                    state.timesAlone = batch.requests == 1 && input.count == 0 ? state.timesAlone + 1 : 0
                }
                return state.timesAlone >= Self.lonely && state.inFlight == 0
            }
            if batch.requests > 0 { gathering.note(batch) }
            // Where several take turns with the thread it would sleep too long for each, and who is in the midst of sending waits for us.
            if state.value.inFlight == 0, input.count == 0, served.clients == 1,
                let moment = gathering.moment(after: batch, unfetched: socket.unfetched)
            {
                if await engine.pause(nanoseconds: moment) { gathering.hasPaused() }
            } else if isLonely {
                // Of a client with many on their way the first is not to be answered before the others are there. And who waits for
                // the disk sleeps: of a virtual one the host may need the very core.
                engine.expectMore()
            }
            guard await input.receive(from: socket, on: engine) > 0 else { return }
        }
    }

    /// Those of the next few requests that have arrived whole, up to the first that is neither one nor a read; none when that is
    /// only one.
    private func nextShortWrites() -> [ByteRange] {
        let bytes = input.bytes
        var (ranges, next): ([ByteRange], Int) = ([], 0)
        for _ in 0..<Self.together {
            guard bytes.count - next >= RequestHeader.byteCount,
                let request = RequestHeader(UnsafeRawBufferPointer(rebasing: bytes[next...])),
                case .serve(let command) = judge(request), command == .read || request.hasShortPayload
            else { break }
            next += RequestHeader.byteCount + (command == .read ? 0 : Int(request.length))
            // Only what is whole; and most of those that come alone are seen to be alone here.
            guard next <= bytes.count, next < bytes.count || !ranges.isEmpty else { break }
            guard command == .write else { continue }
            if ranges.isEmpty { ranges.reserveCapacity(Self.together) }
            ranges.append(ByteRange(offset: request.offset, length: UInt64(request.length)))
        }
        return ranges.count > 1 ? ranges : []
    }

    private func waitForSlot() async {
        while state.value.inFlight >= Self.maximumInFlight {
            await withUnsafeContinuation { state.value.waitingForSlot = $0 }
        }
    }

    private func judge(_ request: RequestHeader) -> RequestRules.Verdict {
        var rules = rules
        rules.isEnding = state.value.isEnding
        return rules.judge(request)
    }

    /// Serves a short read or write in this step when nothing has to be waited for, or begins one that ends without a task;
    /// false when the request needs one. `buffer` is then memory for it, if there was some.
    private func serveAtOnce(_ request: RequestHeader, _ buffer: inout IOBuffer?) -> Bool {
        let count = Int(request.length)
        guard count > 0, state.value.inFlight < Self.maximumInFlight,
            case .serve(let command) = judge(request)
        else { return false }
        guard count <= Self.maximumAtOnce else { return command == .read && replyWithPages(request) }
        switch command {
        case .write:
            // From where it was received; the disk takes it from memory that stays.
            guard !request.flags.contains(.fua), let payload = input.slice(count) else { return false }
            if !writeAtOnce(request, payload) {
                buffer = memory.takeIfAvailable(count, for: account)
                guard let buffer else { return false }
                buffer.bytes.copyMemory(from: UnsafeRawBufferPointer(payload.bytes))
                guard beginWrite(request, buffer) else { return false }
            }
            input.drop(count)
        case .read:
            guard let memory = memory.takeIfAvailable(count, for: account) else { return false }
            buffer = memory
            let range = ByteRange(offset: request.offset, length: UInt64(count))
            guard !device.readAtOnce(range, into: memory[0..<count]) else {
                leaveNew(dataReply(request, memory[0..<count], memory))
                break
            }
            guard
                device.beginRead(range, into: memory[0..<count], { self.end(request, .read, memory, $0) })
            else { return false }
            state.value.inFlight += 1
        default: return false
        }
        return true
    }

    /// False when more than the disk has to be waited for. `buffer` has the payload.
    private func beginWrite(_ request: RequestHeader, _ buffer: IOBuffer) -> Bool {
        let range = ByteRange(offset: request.offset, length: UInt64(request.length))
        guard !request.flags.contains(.fua),
            device.beginWrite(
                range, from: buffer[0..<Int(request.length)], { self.end(request, .write, buffer, $0) })
        else { return false }
        state.value.inFlight += 1
        return true
    }

    /// A request that was begun without a task has ended.
    private func end(_ request: RequestHeader, _ command: NBDCommand, _ buffer: IOBuffer, _ end: BegunEnd) {
        let reply: Reply
        switch end {
        case .done where command == .read:
            reply = dataReply(request, buffer[0..<Int(request.length)], buffer)
        case .done:
            // Others may have it before the reply has left.
            memory.give(buffer, from: account)
            reply = Reply(cookie: request.cookie, form: .simple(nil))
        case .unfinished:
            // It has a task after all, which outlives nothing: `run` waits for its reply.
            Task(executorPreference: engine) { await self.serve(request, command, buffer) }
            return
        case .failed(let error):
            memory.give(buffer, from: account)
            return fail(request, error)
        }
        let (areEnough, isFirst) = state.withState { state in
            state.outgoing.append(reply)
            guard state.outgoing.count * Self.gatheredPart < state.inFlight else { return (true, false) }
            defer { state.isSendingSoon = true }
            return (false, !state.isSendingSoon)
        }
        if areEnough { return sendAtOnce() }
        guard isFirst else { return }
        engine.callSoon {
            self.state.value.isSendingSoon = false
            self.sendAtOnce()
        }
    }

    /// False when the device would have to wait, or it would take long.
    private func writeAtOnce(_ request: RequestHeader, _ payload: IOSlice) -> Bool {
        let range = ByteRange(offset: request.offset, length: UInt64(payload.count))
        // Asked of each long one: its payload hides what follows it from whoever counts what comes together.
        let isAlone = payload.count > Self.maximumAtOnce && comesAlone()
        guard !request.flags.contains(.fua),
            payload.count <= Self.maximumWriteAtOnce || payload.count <= Self.maximumAlone && isAlone,
            device.writeAtOnce(range, from: payload)
        else { return false }
        leaveNew(Reply(cookie: request.cookie, form: .simple(nil)))
        return true
    }

    /// Whether the client, from whom a request has come, is the only one and has one on its way at a time.
    private var isAlone: Bool {
        served.clients == 1 && state.withState { $0.inFlight == 0 && $0.timesAlone >= Self.lonely }
    }

    /// `isAlone`, and nothing else of it has arrived; if more has, it has to show anew that it does not send many.
    private func comesAlone() -> Bool {
        let isFollowed = state.value.inFlight > 0 || input.count > 0 || !socket.isEmpty
        if isFollowed { state.value.timesAlone = 0 }
        return isAlone
    }

    /// False when nothing more is to be received. `buffer` is memory that was taken for the request.
    private func begin(
        _ request: RequestHeader, _ buffer: IOBuffer?, _ group: inout DiscardingTaskGroup
    ) async -> Bool {
        switch judge(request) {
        case .disconnect: return false
        case .close(let why):
            report(why)
            cutOff()
            return false
        case .refuse(let error, let message, let payload):
            // With the memory that a read had before the client was told to leave.
            if let buffer { memory.give(buffer, from: account) }
            guard await drain(payload) else { return false }
            state.value.inFlight += 1
            refuse(request, error, message)
        case .serve(let command):
            // What has memory already was tried.
            let isToTry = buffer == nil
            var buffer = buffer
            let length = Int(request.length)
            if command == .read || command == .write, length > 0 {
                let count = command == .read ? min(length, RequestMemory.maximumPiece) : length
                if buffer == nil { buffer = await memory.take(count, for: account) }
                guard let buffer else { return false }
                if command == .write {
                    let isThere = await receivePayload(buffer[0..<count])
                    guard isThere, !(isToTry && writeAtOnce(request, buffer[0..<count])) else {
                        memory.give(buffer, from: account)
                        return isThere
                    }
                    if isToTry, beginWrite(request, buffer) { return true }
                }
            }
            state.value.inFlight += 1
            group.addTask { [buffer] in await self.serve(request, command, buffer) }
        }
        return true
    }

    /// Fills `slice` with what follows a header; false when the client leaves before.
    private func receivePayload(_ slice: IOSlice) async -> Bool {
        let bytes = slice.bytes
        var done = min(bytes.count, input.count)
        bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: input.bytes[..<done]))
        input.drop(done)
        guard done < bytes.count else { return true }
        // Whoever sleeps between its parts is woken for each, and the kernel has nobody wait for the whole of it awake.
        let isAwake = isAlone
        progress.incoming.begin(bytes.count - done)
        defer { progress.incoming.end() }
        while done < bytes.count {
            // In pieces, so that the watchdog sees a slow client move.
            let end = min(done + Self.payloadPiece, bytes.count)
            let rest = UnsafeMutableRawBufferPointer(rebasing: bytes[done..<end])
            if isAwake { engine.expectMore() }
            let count = await engine.receive(socket.descriptor, rest, all: !isAwake)
            if count == Int(-EINTR) || count == Int(-EAGAIN) { continue }
            guard count > 0 else { return false }
            progress.incoming.moved()
            done += count
        }
        withExtendedLifetime(slice) {}
        return true
    }

    /// Drops the payload of a request that is refused; false when the client leaves before.
    private func drain(_ payload: Int) async -> Bool {
        var left = payload
        while left > 0 {
            if input.count == 0 {
                guard await input.receive(from: socket, on: engine) > 0 else { return false }
            }
            let dropped = min(left, input.count)
            input.drop(dropped)
            left -= dropped
        }
        return true
    }

    /// Tells the operator, who does not need to hear everything from a client that goes on and on.
    func report(_ what: String) {
        state.value.reports += 1
        guard state.value.reports <= 8 else { return }
        let last = state.value.reports == 8 ? " (more of this client is not reported)" : ""
        log("NBD client of the export \"\(exportName)\": \(what)\(last)")
    }
}

extension RequestHeader {
    /// What follows it fits into the receive buffer.
    fileprivate var hasShortPayload: Bool {
        type == NBDCommand.write.rawValue && length <= Transmission.maximumAtOnce
    }
}
