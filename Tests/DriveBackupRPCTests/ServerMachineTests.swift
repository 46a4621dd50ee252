import DriveBackupWire
import Testing

@testable import DriveBackupRPC

@Suite("The server's side of a connection")
struct ServerMachineTests {
    @Test("a call is dispatched whole, byte by byte, and its status ends it")
    func simple() throws {
        var test = MachineUnderTest()
        for byte in hello() + call(1, message: [1, 2, 3]) { test.receive([byte]) }
        #expect(
            test.dispatched == [
                IncomingCall(stream: 1, method: "known", metadata: [], deadline: nil, request: [1, 2, 3])
            ])
        #expect(test.machine.send([9, 9], on: 1, now: 0) == .sent)
        test.finish(1)
        let types = try frames(test.sent).map(\.header.type)
        #expect(types == [.hello, .message, .status])
        #expect(test.budget.usedBytes == 0)
    }

    @Test("a request may come in a MESSAGE after its CALL")
    func later() throws {
        var test = MachineUnderTest()
        test.receive(hello() + call(1, end: false))
        #expect(test.dispatched.isEmpty)
        test.receive(raw(3, stream: 1, flags: 1, [4]))
        #expect(test.dispatched.map(\.request) == [[4]])
        // With the request in the CALL, the END may follow alone.
        test.receive(call(3, end: false, message: [5]) + raw(3, stream: 3, flags: 1))
        #expect(test.dispatched.map(\.request) == [[4], [5]])
        // An empty request that is said to be the only one.
        test.receive(call(5))
        #expect(test.dispatched.map(\.request) == [[4], [5], []])
        // An empty one in a MESSAGE.
        test.receive(call(7, end: false) + raw(3, stream: 7, flags: 1))
        #expect(test.dispatched.count == 4)
    }

    @Test("a second request ends its call only")
    func secondRequest() throws {
        var test = MachineUnderTest()
        test.receive(hello() + call(1) + raw(3, stream: 1, flags: 1, [1]))
        test.receive(call(3, end: false, message: [1]) + raw(3, stream: 3, [2]) + raw(3, stream: 3, [2]))
        #expect(try test.statuses() == [1: .invalidArgument, 3: .invalidArgument])
        #expect(test.cancelled == [1])
        #expect(try test.goAway() == nil)
    }

    @Test(
        "a connection ends with a reason when its framing cannot be trusted",
        arguments: [
            raw(7, Frames.Ping().encoded), call(1), raw(1, [0xFF]), raw(1, length: 65537),
            raw(1, Frames.Hello(protocolVersion: 2).encoded), raw(1, Frames.Hello().encoded),
            raw(1, Frames.Hello(protocolVersion: 1, maxPayload: 1).encoded),
            hello() + hello(), hello() + raw(9, stream: 1), hello() + raw(77, stream: 1),
            hello() + call(2), hello() + call(0), hello() + call(3) + call(1), hello() + call(3) + call(3),
            hello() + raw(3, stream: 1), hello() + raw(5, stream: 1), hello() + credit(1, 1),
            hello() + call(1) + credit(2, 1), hello() + call(1) + raw(5, stream: 3),
            hello() + raw(4, stream: 1), hello() + call(1) + raw(4, stream: 1),
            hello() + raw(7, length: 5 << 20), hello() + raw(7, length: 65537),
            hello() + raw(9, length: 65537),
            hello() + call(1) + raw(5, stream: 1, length: 65537),
            hello() + call(1) + raw(6, stream: 1, length: 65537),
            hello() + raw(2, stream: 1, length: .max),
            hello() + raw(2, stream: 2, length: 5 << 20),
            hello() + raw(3, stream: 5, length: 5 << 20),
            Array("GET / HTTP/1.1\r\nHost: x\r\n\r\n".utf8),
        ])
    func untrusted(bytes: [UInt8]) throws {
        for isBytewise in [false, true] {
            var test = MachineUnderTest()
            if isBytewise {
                for byte in bytes { test.receive([byte]) }
            } else {
                test.receive(bytes)
            }
            test.receive(call(101))
            let goAway = try #require(try test.goAway())
            #expect(goAway.code != .ok)
            #expect(!goAway.message.isEmpty)
            #expect(test.machine.link.phase == .ending)
            #expect(!test.dispatched.contains { $0.stream == 101 })
            for dispatched in test.dispatched { test.machine.handlerEnded(dispatched.stream) }
            #expect(test.budget.usedBytes == 0)
        }
    }

    @Test("what is wrong with one call ends that call only")
    func oneCall() throws {
        var test = MachineUnderTest()
        test.receive(hello())
        test.receive(call(1, "unknown") + call(3, "unknown", end: false) + raw(3, stream: 3, flags: 1))
        test.receive(raw(2, stream: 5, flags: 1, [0xFF, 0xFF]))
        test.receive(raw(2, stream: 7, flags: 1, [10, 3, 0x6B, 0, 0x6B]))  // NUL in the method
        test.receive(raw(2, stream: 9, flags: 1, [10, 2, 0xC3, 0x28]))  // bad UTF-8 in the method
        test.receive(raw(2, stream: 11, flags: 1, length: 5 << 20, [UInt8](repeating: 0, count: 5 << 20)))
        test.receive(
            call(13, end: false) + raw(3, stream: 13, length: 5 << 20, [UInt8](repeating: 0, count: 5 << 20)))
        test.receive(call(15) + raw(6, stream: 15, [0xFF]))
        test.receive(
            raw(
                2, stream: 17, flags: 1,
                Frames.Call(method: "known", metadata: [Frames.Metadata(key: "A b")]).encoded))
        test.receive(call(19))
        #expect(
            try test.statuses() == [
                1: .unimplemented, 3: .unimplemented, 5: .invalidArgument, 7: .invalidArgument,
                9: .invalidArgument, 11: .resourceExhausted, 13: .resourceExhausted, 15: .invalidArgument,
                17: .invalidArgument,
            ])
        #expect(test.dispatched.map(\.stream) == [15, 19])
        #expect(try test.goAway() == nil)
    }

    @Test("frames to a call that has ended are ignored")
    func ended() throws {
        var test = MachineUnderTest()
        test.receive(hello() + call(1))
        test.finish(1)
        let sent = test.sent
        test.receive(credit(1, 5) + raw(5, stream: 1) + raw(3, stream: 1, [1]))
        test.receive(
            raw(3, stream: 1, length: 5 << 20, [UInt8](repeating: 0, count: 5 << 20))
                + raw(6, stream: 1, [0xFF]))
        #expect(test.sent == sent)
        #expect(test.budget.usedBytes == 0)
    }

    @Test("a message may overdraw the credit, and the next one waits for more")
    func creditOfMessages() throws {
        var test = MachineUnderTest()
        test.receive(hello(credit: 10) + call(1))
        #expect(test.machine.send([UInt8](repeating: 0, count: 100), on: 1, now: 0) == .sent)
        #expect(test.machine.send([1], on: 1, now: 0) == .wait)
        test.receive(credit(1, 90))
        #expect(test.machine.send([1], on: 1, now: 0) == .wait)
        test.effects = []
        test.receive(credit(1, 1))
        #expect(test.effects == [.maySend(stream: 1)])
        #expect(test.machine.send([1], on: 1, now: 0) == .sent)
        // No sum of credits is too much.
        test.receive(credit(1, .max) + credit(1, .max))
        #expect(test.machine.send([1], on: 1, now: 0) == .sent)
    }

    @Test("an answer is a message and the end of its call, or nothing while it has to wait")
    func answers() throws {
        var test = MachineUnderTest()
        test.receive(hello(credit: 0) + call(1) + call(3))
        #expect(test.machine.answer([7], on: 1, now: 0) == .wait)
        #expect(test.machine.openCalls == 2 && test.machine.runningHandlers == 2)
        test.receive(credit(1, 1) + raw(5, stream: 3))
        #expect(test.machine.answer([7], on: 1, now: 0) == .sent)
        #expect(test.machine.answer([8], on: 3, now: 0) == .ended)
        test.machine.handlerEnded(3)
        test.collect()
        let sent = try frames(test.sent).filter { $0.header.stream == 1 }
        #expect(sent.map(\.header.type) == [.message, .status])
        #expect(sent.map(\.payload) == [[7], []])
        #expect(sent.map(\.header.isEnd) == [false, true])
        #expect(test.machine.openCalls == 0 && test.machine.runningHandlers == 0)
        #expect(test.budget.usedBytes == 0)
    }

    @Test("control frames are answered when all calls are stuck")
    func pingWhileStuck() throws {
        var test = MachineUnderTest()
        test.receive(hello(credit: 0) + call(1) + call(3))
        #expect(test.machine.send([1], on: 1, now: 0) == .wait)
        test.receive(raw(7, Frames.Ping(token: 42).encoded))
        let last = try #require(try frames(test.sent).last)
        #expect(last.header.type == .pong)
        #expect(try Frames.Pong.decode(last.payload).token == 42)
        // A status needs no credit.
        test.finish(1, RPCStatus(.notFound, "no"))
        #expect(try test.statuses() == [1: .notFound])
    }

    @Test("a cancelled call's handler is cancelled, and its status is CANCELLED")
    func cancel() throws {
        var test = MachineUnderTest()
        test.receive(hello() + call(1) + raw(5, stream: 1, Frames.Cancel(reason: "enough").encoded))
        #expect(test.cancelled == [1])
        #expect(try test.statuses() == [1: .cancelled])
        // What the handler says afterwards is not sent.
        #expect(test.machine.send([1], on: 1, now: 0) == .ended)
        test.finish(1)
        #expect(try frames(test.sent).count == 2)
        #expect(test.budget.usedBytes == 0)
    }

    @Test("a deadline ends its call when it passes and not before")
    func deadline() throws {
        var test = MachineUnderTest()
        test.receive(
            hello() + call(1, timeout: 1000) + call(3, timeout: 2000) + call(5, timeout: .max) + call(7))
        #expect(test.machine.work(now: 0).timer == 1000)
        test.now = 999
        test.collect()
        #expect(try test.statuses().isEmpty)
        test.now = 1000
        test.collect()
        #expect(try test.statuses() == [1: .deadlineExceeded])
        #expect(test.cancelled == [1])
        #expect(test.machine.work(now: 1000).timer == 2000)
        test.now = 5000
        test.collect()
        #expect(test.cancelled == [1, 3])
    }

    @Test("calls beyond the limit are refused, and handlers that do not return count")
    func maxCalls() throws {
        var limits = RPCLimits()
        limits.maxCallsPerConnection = 2
        var test = MachineUnderTest(limits: limits)
        test.receive(hello() + call(1) + call(3) + call(5))
        #expect(try test.statuses() == [5: .resourceExhausted])
        test.receive(raw(5, stream: 1) + call(7))
        #expect(try test.statuses() == [5: .resourceExhausted, 1: .cancelled, 7: .resourceExhausted])
        test.finish(1)
        test.receive(call(9))
        #expect(test.dispatched.map(\.stream) == [1, 3, 9])
    }

    @Test("requests beyond what the server holds are skipped and refused")
    func budget() throws {
        var limits = RPCLimits()
        limits.maxBytesInFlight = 10_000
        var test = MachineUnderTest(limits: limits)
        let request = [UInt8](repeating: 1, count: 6000)
        test.receive(hello() + call(1, message: request) + call(3, message: request) + call(5))
        #expect(try test.statuses() == [3: .resourceExhausted])
        #expect(test.dispatched.map(\.stream) == [1, 5])
        test.finish(1)
        test.receive(call(7, message: request))
        #expect(test.dispatched.map(\.stream) == [1, 5, 7])
    }

    @Test("statuses and go-aways fit what a client takes")
    func smallClient() throws {
        var test = MachineUnderTest()
        test.receive(hello(maxPayload: 64) + call(1) + call(3, String(repeating: "x", count: 40000)))
        test.finish(1, RPCStatus(.notFound, String(repeating: "é", count: 1000), reason: "DRIVE_NOT_FOUND"))
        test.machine.shutDown(RPCStatus(.unavailable, String(repeating: "y", count: 1000)), now: 0)
        test.collect()
        #expect(try test.statuses() == [1: .notFound, 3: .unimplemented])
        #expect(try frames(test.sent).dropFirst().allSatisfy { $0.payload.count <= 64 })
    }

    @Test("a server that stops lets calls end and takes no new ones")
    func shutDown() throws {
        var test = MachineUnderTest()
        test.receive(hello() + call(1))
        test.machine.shutDown(RPCStatus(.unavailable, "bye"), now: 0)
        test.receive(call(3))
        #expect(try test.statuses() == [3: .unavailable])
        #expect(test.machine.link.phase == .open)
        test.finish(1)
        #expect(test.machine.link.phase == .ending)
        #expect(try test.goAway()?.message == "bye")
        #expect(test.budget.usedBytes == 0)
    }

    @Test("a server that has waited long enough does not wait for a client that does not read")
    func shutDownAtLast() {
        for waits in [false, true] {
            var test = MachineUnderTest()
            test.receive(hello())
            test.machine.shutDown(RPCStatus(.unavailable, "bye"), now: 0)
            // Something is on its way to the client, and stays there.
            #expect(!test.machine.work(now: 0).bytes.isEmpty && test.machine.link.phase == .ending)
            if !waits { _ = test.machine.refuse(RPCStatus(.unavailable, "at once"), now: 1) }
            _ = test.machine.tick(now: Int64(1).adding(RPCLimits().lingerTimeout))
            #expect(test.machine.link.phase == (waits ? .ending : .closed))
        }
    }

    @Test("nobody who is silent stays")
    func silence() throws {
        var test = MachineUnderTest()
        test.now = 10_000_000_000
        test.collect()
        #expect(try test.goAway()?.code == .deadlineExceeded)

        test = MachineUnderTest()
        test.receive(hello() + call(1))
        // Half a frame, a byte at a time, is no sign of life.
        for second in 1..<50 {
            test.now = Int64(second) * 1_000_000_000
            test.receive(Array(raw(3, stream: 1, length: 1000).dropFirst(second == 1 ? 0 : 13).prefix(1)))
        }
        #expect(try frames(test.sent).map(\.header.type).contains(.ping))
        #expect(try test.goAway() == nil)
        test.now = 50_000_000_000
        test.collect()
        #expect(try test.goAway()?.code == .unavailable)
        #expect(test.cancelled == [1])

        test = MachineUnderTest()
        test.receive(hello())
        for second in stride(from: 20, to: 400, by: 20) {
            test.now = Int64(second) * 1_000_000_000
            test.receive(raw(8, Frames.Pong().encoded))
        }
        #expect(try test.goAway() == nil)
    }

    @Test("a peer that reads nothing is cut off, and costs bounded memory until then")
    func neverReads() throws {
        var test = MachineUnderTest()
        test.receive(hello(credit: .max) + call(1))
        var sent = 0
        while test.machine.send([UInt8](repeating: 0, count: 1000), on: 1, now: 0) == .sent { sent += 1 }
        _ = test.machine.work(now: 0)  // Taken by the transport, and never written.
        #expect(sent < 300)
        let ping = raw(7, Frames.Ping(token: 1).encoded)
        var pings = 0
        while test.machine.work(now: 0).wantsRead {
            test.effects += ping.withUnsafeBytes { test.machine.receive($0, now: 0) }
            pings += 1
        }
        #expect(test.machine.link.pendingBytes < 6 << 20)
        test.effects += test.machine.tick(now: 30_000_000_000)
        #expect(test.machine.link.phase == .closed)
        #expect(test.cancelled == [1])
    }
}
