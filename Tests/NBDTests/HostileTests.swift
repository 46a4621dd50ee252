internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("Hostile clients", .serialized)
struct HostileTests {
    /// Limits that are not shared with other tests.
    private static func limits(stall: Duration = .seconds(3600), handshake: Duration = .seconds(3600))
        -> NBDLimits
    {
        NBDLimits(
            handshake: handshake, stall: stall, tick: .milliseconds(20), connections: 64,
            memory: RequestMemory())
    }

    @Test(
        "sixteen clients that never read their replies take nothing from one that does",
        arguments: EngineKind.allCases)
    func neverReading(kind: EngineKind) async throws {
        let limits = Self.limits()
        let test = try await ServerUnderTest.start(kind, limits: limits)
        _ = try await test.addFile("a", bytes: 64 << 20)
        var hostile: [RawClient] = []
        for index in 0..<16 {
            let client = try await RawClient.open(test.path, structured: index % 2 == 0)
            // More than a socket holds; it gets stuck where the server stops reading, which is no matter of ours.
            let length: UInt32 = index % 3 == 0 ? 32 << 20 : 1 << 20
            try await client.send(
                (0..<100).flatMap { RawClient.request(0, cookie: $0, length: length) })
            hostile.append(client)
        }
        let good = try await RawClient.open(test.path)
        for index in 0..<200 {
            let answer = try await good.ask(
                0, cookie: UInt64(index), offset: UInt64(index) << 16, length: 65536)
            #expect(answer.error == 0)
        }
        let block = [UInt8](repeating: 3, count: 1 << 20)
        for index in 0..<20 {
            #expect(
                try await good.ask(1, offset: UInt64(index) << 20, length: 1 << 20, payload: block).error == 0
            )
        }
        let fio = try await runProcess(
            "fio",
            [
                "--name=x", "--ioengine=nbd", "--uri=" + test.uri("a"), "--rw=randrw", "--bs=64k",
                "--iodepth=16",
                "--size=64m", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
            ])
        #expect(fio.status == 0, "\(fio.output)\(fio.error)")
        #expect(limits.memory.used <= 64 << 20)
        // They are all still there: nobody has been disturbed for the good one's sake.
        #expect(test.server.clients(of: "a") == 17)
        for client in hostile { client.socket.shutDown() }
        try await test.stop()
        #expect(limits.memory.used == 0)
    }

    @Test(
        "clients that hold announced payloads back are let go when others need the memory",
        arguments: EngineKind.allCases)
    func heldBack(kind: EngineKind) async throws {
        let limits = Self.limits(stall: .milliseconds(200))
        let test = try await ServerUnderTest.start(kind, limits: limits)
        let disk = try test.addDisk("a", bytes: 64 << 20)
        var hostile: [RawClient] = []
        for _ in 0..<2 {
            let client = try await RawClient.open(test.path)
            try await client.send(RawClient.request(1, length: 32 << 20) + [1, 2, 3])
            hostile.append(client)
        }
        while limits.memory.used < 64 << 20 { await Task.yield() }
        let first = try await RawClient.open(test.path)
        #expect(try await first.ask(0, length: 1 << 20).error == 0)
        // Who needs half of the memory needs one of them gone, and the disk keeps what it got: the next one needs the other.
        disk.hold()
        let payload = [UInt8](repeating: 5, count: 32 << 20)
        let asking = Task { try await first.ask(1, length: 32 << 20, payload: payload) }
        while disk.heldCalls.isEmpty { await Task.yield() }
        let second = try await RawClient.open(test.path)
        let askingNext = Task { try await second.ask(1, length: 32 << 20, payload: payload) }
        for client in hostile { await client.waitForEnd() }
        disk.release()
        #expect(try await asking.value.error == 0)
        #expect(try await askingNext.value.error == 0)
        // Nothing of the others' writes was applied.
        #expect(disk.calls.filter { $0.operation == .write }.count == 2)
        try await test.stop()
        #expect(limits.memory.used == 0)
    }

    @Test(
        "a client whose announced payload trickles is let go when others need the memory",
        arguments: EngineKind.allCases)
    func trickling(kind: EngineKind) async throws {
        // The watchdog sleeps; the test looks in its place, by a clock of its own.
        var limits = Self.limits(stall: .seconds(5))
        limits.tick = .seconds(3600)
        let test = try await ServerUnderTest.start(kind, limits: limits)
        let disk = try test.addDisk("a", bytes: 64 << 20)
        let client = try await RawClient.open(test.path)
        let connection = try #require(test.server.reception.connections.all.first)
        let piece = [UInt8](repeating: 7, count: 1 << 20)
        func trickle() async throws {
            let moves = connection.progress.incoming.count
            try await client.send(piece)
            while connection.progress.incoming.count == moves { await Task.yield() }
        }
        let before = ContinuousClock.now
        try await client.send(RawClient.request(1, length: 32 << 20))
        // Slow, but never as slow as to stand still: 5 s are its time for that, and 38.5 s for all of it.
        for second in stride(from: 0, through: 38, by: 4) {
            try await trickle()
            connection.check(at: before + .seconds(second), isContended: true)
            #expect(test.said.value == [])
        }
        let after = ContinuousClock.now
        try await trickle()
        connection.check(at: after + .seconds(39), isContended: false)
        #expect(test.said.value == [], "nobody needs the memory")
        connection.check(at: after + .seconds(39), isContended: true)
        await client.waitForEnd()
        #expect(test.said.value.count == 1 && test.said.value.allSatisfy { $0.contains("too slowly") })
        #expect(disk.calls == [])
        try await test.stop()
        #expect(limits.memory.used == 0)
    }

    @Test(
        "a client that does not take its replies, but sends on, or takes a little of them now and then, is let go when others need the memory",
        arguments: EngineKind.allCases, [true, false])
    func keepingReplies(kind: EngineKind, takesSome: Bool) async throws {
        // As above.
        var limits = Self.limits(stall: .seconds(5))
        limits.tick = .seconds(3600)
        // One that stands still is not to be found slow.
        if !takesSome { limits.replyBytesPerSecond = 1 }
        let test = try await ServerUnderTest.start(kind, limits: limits)
        _ = try test.addDisk("a", bytes: 64 << 20)
        let client = try await RawClient.open(test.path)
        let connection = try #require(test.server.reception.connections.all.first)
        let outgoing = connection.progress.outgoing
        let before = ContinuousClock.now
        try await client.send(RawClient.request(0, length: 32 << 20))
        while !outgoing.isWaiting { await Task.yield() }
        for second in [1, 4, 5] {
            if takesSome {
                let moves = outgoing.count
                while outgoing.count == moves { _ = try await client.receive(64 << 10) }
            } else {
                try await client.send([0x25])
            }
            connection.check(at: before + .seconds(second), isContended: true)
            #expect(test.said.value == [])
        }
        let after = ContinuousClock.now
        if takesSome {
            let moves = outgoing.count
            while outgoing.count == moves { _ = try await client.receive(64 << 10) }
        } else {
            try await client.send([0x60])
        }
        connection.check(at: after + .seconds(60), isContended: false)
        #expect(test.said.value == [], "nobody needs the memory")
        // Between two pieces it is not waited for, and a socket that is being filled moves.
        var later = after + .seconds(60)
        for _ in 0..<1_000_000 where test.said.value.isEmpty {
            connection.check(at: later, isContended: true)
            if !takesSome { later += .seconds(10) }
            await Task.yield()
        }
        let why = takesSome ? "took its replies too slowly" : "stood still"
        #expect(test.said.value.count == 1 && test.said.value.allSatisfy { $0.contains(why) })
        try await test.stop()
        #expect(limits.memory.used == 0)
    }

    @Test(
        "a handshake of many questions that is sent in one piece, with a request behind it, is answered whole"
    )
    func longHandshake() async throws {
        let test = try await ServerUnderTest.start(limits: Self.limits())
        for index in 0..<20 { _ = try test.addDisk("disk \(index)", bytes: 1 << 20) }
        let client = try await RawClient(test.path)
        try await client.greet()
        let list =
            RawClient.bytes(NBDProtocol.optionMagic) + RawClient.bytes(UInt32(3)) + RawClient.bytes(UInt32(0))
        let name = RawClient.string("disk 3") + RawClient.bytes(UInt16(0))
        let go =
            RawClient.bytes(NBDProtocol.optionMagic) + RawClient.bytes(UInt32(7))
            + RawClient.bytes(UInt32(name.count)) + name
        try await client.send((0..<500).flatMap { _ in list } + go + RawClient.request(3, cookie: 77))
        for _ in 0..<500 {
            var names = 0
            while try await client.optionReply().type != 1 { names += 1 }
            #expect(names == 20)
        }
        while try await client.optionReply().type != 1 {}
        #expect(try await client.reply().cookie == 77)
        try await test.stop()
    }

    @Test("a payload has its time by its length")
    func timeOfPayloads() {
        let progress = Transmission.Progress.Way()
        let limits = NBDLimits()
        let start = ContinuousClock.now
        #expect(!progress.isLate(at: start + .seconds(1000), limits.stall, limits.payloadBytesPerSecond))
        progress.begin(32_000_000, at: start)
        #expect(progress.isWaiting)
        for second in 0...37 {
            progress.moved()
            #expect(
                !progress.isLate(at: start + .seconds(second), limits.stall, limits.payloadBytesPerSecond))
        }
        #expect(progress.isLate(at: start + .seconds(38), limits.stall, limits.payloadBytesPerSecond))
        progress.end()
        #expect(
            !progress.isWaiting
                && !progress.isLate(at: start + .seconds(38), limits.stall, limits.payloadBytesPerSecond))
    }

    @Test("a client that leaves in the middle of a write has written nothing", arguments: EngineKind.allCases)
    func leaving(kind: EngineKind) async throws {
        let limits = Self.limits()
        let test = try await ServerUnderTest.start(kind, limits: limits)
        let disk = try test.addDisk("a", bytes: 8 << 20)
        for cut in [0, 1, 27, 28, 29, 4095, 100_000] {
            let client = try await RawClient.open(test.path)
            let bytes = RawClient.request(1, length: 100_001) + [UInt8](repeating: 9, count: 100_000)
            try await client.send(Array(bytes.prefix(cut)))
            client.socket.shutDown()
            client.socket.close()
        }
        while test.server.clients(of: "a") > 0 { await Task.yield() }
        #expect(disk.calls == [])
        #expect(limits.memory.used == 0)
        // What was whole is done, whoever is there to hear of it.
        disk.hold()
        let client = try await RawClient.open(test.path)
        try await client.send(RawClient.request(1, length: 4) + [1, 2, 3, 4])
        while disk.heldCalls.isEmpty { await Task.yield() }
        client.socket.shutDown()
        client.socket.close()
        #expect(test.server.clients(of: "a") == 1)
        disk.release()
        while test.server.clients(of: "a") > 0 { await Task.yield() }
        #expect(disk.contents(of: ByteRange(offset: 0, length: 4)) == [1, 2, 3, 4])
        try await test.stop()
    }

    @Test("garbage ends a connection and nothing else", arguments: EngineKind.allCases)
    func garbage(kind: EngineKind) async throws {
        let limits = Self.limits()
        let test = try await ServerUnderTest.start(kind, limits: limits)
        _ = try test.addDisk("a", bytes: 8 << 20)
        let good = try await RawClient.open(test.path)
        var generator = SeededGenerator(testSeed())
        for round in 0..<testRounds(60) {
            let noise = (0..<Int.random(in: 1...3000, using: &generator)).map { _ in
                UInt8.random(in: 0...255, using: &generator)
            }
            let client = round % 2 == 0 ? try await RawClient(test.path) : try await RawClient.open(test.path)
            if round % 4 == 1 {
                // Well-formed requests with random fields between.
                for _ in 0..<20 {
                    let request = RawClient.request(
                        UInt16.random(in: 0..<10, using: &generator), cookie: 1,
                        flags: UInt16.random(in: 0..<32, using: &generator),
                        offset: UInt64.random(in: 0..<10 << 20, using: &generator),
                        length: UInt32.random(in: 0..<5000, using: &generator))
                    // A server that has hung up is what we are after.
                    try? await client.send(request)
                }
            }
            try? await client.send(noise)
            client.socket.shutDown()
            #expect(try await good.ask(0, cookie: UInt64(round), length: 512).error == 0)
        }
        while test.server.clients(of: "a") > 1 { await Task.yield() }
        try await test.stop()
        #expect(limits.memory.used == 0)
    }

    @Test("a handshake has its time")
    func slowHandshake() async throws {
        let test = try await ServerUnderTest.start(limits: Self.limits(handshake: .milliseconds(100)))
        _ = try test.addDisk("a", bytes: 1 << 20)
        // On a busy machine its handshake, too, can take too long.
        var opened: RawClient?
        while opened == nil { opened = try? await RawClient.open(test.path) }
        let good = try #require(opened)
        let silent = try await RawClient(test.path)
        let slow = try await RawClient(test.path)
        // Whether the server has hung up by now is the clock's affair; that it does is ours.
        try? await slow.greet()
        try? await slow.option(3)
        await silent.waitForEnd()
        await slow.waitForEnd()
        #expect(try await good.ask(0, length: 512).error == 0)
        #expect(test.said.value.contains { $0.contains("handshake") })
        try await test.stop()
    }

    @Test("more clients than there is room for are turned away, and others come in when they have gone")
    func tooMany() async throws {
        let test = try await ServerUnderTest.start(limits: Self.limits())
        _ = try test.addDisk("a", bytes: 1 << 20)
        var clients: [RawClient] = []
        for _ in 0..<64 { clients.append(try await RawClient.open(test.path)) }
        await #expect(throws: TestKitError.self) { _ = try await RawClient.open(test.path) }
        for client in clients { #expect(try await client.ask(0, length: 512).error == 0) }
        for client in clients.prefix(32) {
            try await client.send(RawClient.request(2))
            await client.waitForEnd()
        }
        while test.server.clients(of: "a") > 32 { await Task.yield() }
        for _ in 0..<30 { clients.append(try await RawClient.open(test.path)) }
        try await test.stop()
    }

    @Test("thousands of requests whose answers nobody takes cost a bounded number of answers")
    func answersNobodyTakes() async throws {
        let limits = Self.limits()
        let test = try await ServerUnderTest.start(limits: limits)
        let disk = try test.addDisk("a", bytes: 1 << 20)
        disk.hold()
        let client = try await RawClient.open(test.path)
        async let sending: Void = client.send(
            (0..<5000).flatMap { RawClient.request(0, cookie: $0, length: 4096) })
        while disk.heldCalls.count < Transmission.maximumInFlight { await Task.yield() }
        for _ in 0..<1000 { await Task.yield() }
        #expect(disk.heldCalls.count == Transmission.maximumInFlight)
        disk.release()
        var answers = 0
        while answers < 5000 {
            _ = try await client.reply()
            answers += 1
        }
        try await sending
        #expect(disk.maximumInFlight <= Transmission.maximumInFlight)
        try await test.stop()
    }

    @Test("a client that stops for a while is left alone as long as it stands in nobody's way")
    func stopped() async throws {
        let limits = Self.limits(stall: .milliseconds(20))
        let test = try await ServerUnderTest.start(limits: limits)
        _ = try test.addDisk("a", bytes: 64 << 20)
        let stopped = try await RawClient.open(test.path)
        try await stopped.send((0..<100).flatMap { RawClient.request(0, cookie: $0, length: 1 << 20) })
        while limits.memory.used == 0 { await Task.yield() }
        // Many ticks of the watchdog: handshakes that time out tell them.
        let other = try await ServerUnderTest.start(limits: Self.limits(handshake: .milliseconds(300)))
        await (try await RawClient(other.path)).waitForEnd()
        #expect(!limits.memory.isContended)
        var last = 0
        while last < 100 { if try await stopped.reply().isLast { last += 1 } }
        try await other.stop()
        try await test.stop()
    }

    @Test("clients are looked after while their time runs, and idle ones never", .timeLimit(.minutes(10)))
    func watching() async throws {
        let limits = Self.limits()
        let test = try await ServerUnderTest.start(limits: limits)
        let disk = try test.addDisk("a", bytes: 64 << 20)
        let reception = test.server.reception
        func asleep(_ isAsleep: Bool) async {
            while reception.isWatchAsleep != isAsleep { await Task.yield() }
        }
        await asleep(true)
        let silent = try await RawClient(test.path)
        await asleep(false)
        silent.socket.shutDown()
        await asleep(true)
        let idle = try await RawClient.open(test.path)
        #expect(try await idle.ask(0, length: 1 << 20).error == 0)
        await asleep(true)
        #expect(reception.connections.count == 1, "an idle client is there and not looked after")

        // Others' memory is what it may have to be let go for.
        let account = RequestMemory.Account()
        var lent: [IOBuffer] = []
        while let buffer = limits.memory.takeIfAvailable(32 << 20, for: account) { lent.append(buffer) }
        let others = RequestMemory.Account()
        while let buffer = limits.memory.takeIfAvailable(32 << 20, for: others) { lent.append(buffer) }
        let waiting = Task { await limits.memory.take(32 << 20, for: RequestMemory.Account()) }
        await asleep(false)
        limits.memory.give(lent.removeLast(), from: others)
        #expect(await waiting.value != nil)
        await asleep(true)

        // One that has hung up has so much time to fetch its replies.
        disk.hold()
        try await idle.send(RawClient.request(0, length: 4096))
        while disk.heldCalls.isEmpty { await Task.yield() }
        idle.socket.shutDown()
        await asleep(false)
        disk.release()
        await asleep(true)
        try await test.stop()
    }
}
