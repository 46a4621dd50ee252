import NIOCore
import NIOEmbedded
import Synchronization
import Testing

@testable import DriveBackupRPC

@Suite("What a transport promises a connection")
struct TransportTests {
    /// Answers each part of what it receives.
    private final class Answerer: Connection {
        private struct State {
            var received = 0
            var isToAnswer = false
            var isOver = false
            var receivedAfterEnd = 0
        }

        private let state = Mutex(State())
        let partSize = 100

        var received: Int { state.withLock { $0.received } }
        var receivedAfterEnd: Int { state.withLock { $0.receivedAfterEnd } }

        func attach(wake _: @escaping @Sendable () -> Void) {}
        func received(_ bytes: UnsafeRawBufferPointer, now _: Int64) {
            let count = bytes.count
            state.withLock { state in
                if state.isOver { state.receivedAfterEnd += count } else { state.received += count }
                state.isToAnswer = true
            }
        }
        func wrote(_: Int, now _: Int64) {}
        func work(now _: Int64) -> TransportWork {
            state.withLock { state in
                defer { state.isToAnswer = false }
                return TransportWork(bytes: state.isToAnswer ? [1] : [])
            }
        }
        func disconnected(_: RPCStatus) { state.withLock { $0.isOver = true } }
    }

    /// A socket that is found closed when it is written to, as NIO tells of one: within the write.
    private final class BrokenSocket: ChannelOutboundHandler {
        typealias OutboundIn = ByteBuffer

        func write(context: ChannelHandlerContext, data _: NIOAny, promise: EventLoopPromise<Void>?) {
            promise?.fail(ChannelError.ioOnClosedChannel)
            context.fireChannelInactive()
        }
    }

    @Test(
        "a connection whose peer goes away in the midst of a read is given nothing more",
        arguments: [false, true])
    func endWithinRead(breaks: Bool) throws {
        let channel = EmbeddedChannel()
        let connection = Answerer()
        if breaks { try channel.pipeline.syncOperations.addHandler(BrokenSocket()) }
        try channel.pipeline.syncOperations.addHandler(ChannelTransport(connection))
        channel.pipeline.fireChannelActive()
        _ = try channel.connect(to: SocketAddress(unixDomainSocketPath: "/nowhere")).wait()
        channel.pipeline.fireChannelRead(NIOAny(ByteBuffer(repeating: 0, count: 1000)))
        #expect(connection.received == (breaks ? 250 : 1000))
        #expect(connection.receivedAfterEnd == 0)
    }
}
