internal import NIOCore
internal import NIOPosix
internal import Synchronization

/// Carries a connection over a NIO channel: the last handler of its pipeline.
///
/// What is to be sent gathers in the connection while the channel's loop reads, and leaves in one write.
final class ChannelTransport: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// So much is written at a time, so that a slow peer's progress is seen.
    private static let chunk = 64 << 10

    private let connection: any Connection
    /// Where a client's callers may run: those that get an answer run before what they then call is sent.
    let executor: LoopExecutor?
    private var context: ChannelHandlerContext?
    private var isReading = false
    private var isServicing = false
    private var wantsRead = true
    private var asksAgain = false
    private var briskWait = BriskWait()
    /// For `briskWait` to look at; the channel's, so valid as long as `context` is there.
    private var socket: NIOBSDSocket.Handle?
    /// Somebody has something to send and waits for the loop.
    private let isCalled = Flag()
    private var timer: Scheduled<Void>?
    private var timerInstant = Int64.max

    init(_ connection: any Connection, running executor: LoopExecutor? = nil) {
        self.connection = connection
        self.executor = executor
    }

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        let this = NIOLoopBound(self, eventLoop: context.eventLoop)
        let eventLoop = context.eventLoop
        let isCalled = isCalled
        connection.attach {
            isCalled.value.store(true, ordering: .relaxed)
            eventLoop.execute { this.value.service() }
        }
        // Without one nobody looks at it before it is said to be ready.
        socket = try? context.pipeline.syncOperations.withUnsafeTransportIfAvailable(
            of: NIOBSDSocket.Handle.self
        ) { $0 }
        if context.channel.isActive { service() }
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
    }

    func channelActive(context: ChannelHandlerContext) {
        service()
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard self.context != nil else { return }
        var buffer = unwrapInboundIn(data)
        let now = RPCClock.now
        briskWait.received(now: now)
        // What has come of a part leaves before the next is looked at, so that the peer works on it meanwhile.
        let part = max(connection.partSize, buffer.readableBytes / 4)
        while buffer.readableBytes > part, let slice = buffer.readSlice(length: part) {
            receive(slice, now: now)
            isReading = false
            executor?.run()
            service(isMore: true)
            // To write may have shown that nobody is there any more; then nothing completes this read.
            guard self.context != nil else { return }
        }
        receive(buffer, now: now)
    }

    private func receive(_ bytes: ByteBuffer, now: Int64) {
        if !isReading { executor?.expectRun() }
        isReading = true
        let connection = connection
        bytes.withUnsafeReadableBytes { connection.received($0, now: now) }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        isReading = false
        executor?.run()
        service()
        context.fireChannelReadComplete()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        disconnected(RPCStatus(.unavailable, "The connection was lost: \(error.sentence)."))
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        disconnected(RPCStatus(.unavailable, "The other side closed the connection."))
        context.fireChannelInactive()
    }

    private func disconnected(_ status: RPCStatus) {
        guard context != nil else { return }
        context = nil
        timer?.cancel()
        timer = nil
        connection.disconnected(status)
        // A read that failed is not completed.
        executor?.run()
    }

    /// Does what the connection has to do; with `isMore` there are bytes that have been read and not been looked at.
    private func service(isMore: Bool = false) {
        guard let context, context.channel.isActive, !isReading else { return }
        isCalled.value.store(false, ordering: .relaxed)
        let work = connection.work(now: RPCClock.now)
        asksAgain = work.asksAgain
        if !work.bytes.isEmpty {
            isServicing = true
            write(work.bytes, context)
            isServicing = false
        }
        schedule(work.timer, context)
        switch work.ending {
        case .none: break
        case .halfClose: context.close(mode: .output, promise: nil)
        case .close:
            context.close(promise: nil)
            return
        }
        if work.wantsRead != wantsRead {
            wantsRead = work.wantsRead
            // Setting an option of a channel on its own loop is done at once.
            context.channel.setOption(.autoRead, value: wantsRead).whenFailure { _ in }
        }
        if !isMore, work.briskWait > 0, !work.bytes.isEmpty, let socket {
            briskWait.sent(to: socket, longest: work.briskWait, interrupted: isCalled.value)
        }
    }

    private func write(_ bytes: [UInt8], _ context: ChannelHandlerContext) {
        var buffer = context.channel.allocator.buffer(bytes: bytes)
        let this = NIOLoopBound(self, eventLoop: context.eventLoop)
        while let chunk = buffer.readSlice(length: min(Self.chunk, buffer.readableBytes)),
            chunk.readableBytes > 0
        {
            let count = chunk.readableBytes
            let promise = context.eventLoop.makePromise(of: Void.self)
            promise.futureResult.whenSuccess { this.value.wrote(count) }
            context.write(wrapOutboundOut(chunk), promise: promise)
        }
        context.flush()
    }

    private func wrote(_ count: Int) {
        connection.wrote(count, now: RPCClock.now)
        // Done at once, within `service`, nothing has gathered meanwhile, and who has something to send wakes us.
        guard let context, !isServicing || asksAgain else { return }
        let this = NIOLoopBound(self, eventLoop: context.eventLoop)
        context.eventLoop.execute { this.value.service() }
    }

    private func schedule(_ instant: Int64?, _ context: ChannelHandlerContext) {
        let instant = instant ?? .max
        // One that is too early finds nothing to do and is set anew. That is cheaper than to move it with every frame.
        guard instant < timerInstant else { return }
        timer?.cancel()
        timer = nil
        timerInstant = instant
        let delay = max(0, instant - RPCClock.now)
        let this = NIOLoopBound(self, eventLoop: context.eventLoop)
        timer = context.eventLoop.scheduleTask(in: .nanoseconds(delay)) {
            this.value.timerInstant = .max
            this.value.service()
        }
    }
}

/// What several threads can set.
private final class Flag: Sendable {
    let value = Atomic(false)
}
