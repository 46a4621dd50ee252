internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import NBD

/// A disk that does most requests without a task, when it is told to: at random it does them, it does not, or it has nothing
/// of the kind.
private final class LateDisk: DiskAbove {
    let disk: SimDisk
    var below: any BlockDevice { disk }
    private let state: Locked<(generator: SeededGenerator, isHolding: Bool, held: [@Sendable () -> Void])>

    init(_ disk: SimDisk, seed: UInt64) {
        self.disk = disk
        state = Locked((SeededGenerator(seed), false, []))
    }

    func beginRead(
        _ range: ByteRange, into buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        begin { [disk] isDone in
            let bytes = disk.contents(of: range)
            // What is not filled holds anything.
            buffer.bytes.copyBytes(from: isDone ? bytes : bytes.map { ~$0 })
            done(isDone ? .done : .unfinished)
        }
    }

    func beginWrite(
        _ range: ByteRange, from buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        begin { [disk] isDone in
            // A part of it is written all the same.
            let part = isDone ? range : range.prefix(range.length / 2)
            // Its own end is what `done` tells.
            Task(executorPreference: disk.engine) {
                do throws(BlockError) {
                    try await disk.write(part, from: buffer[0..<Int(part.length)])
                    done(isDone ? .done : .unfinished)
                } catch {
                    done(.failed(error))
                }
            }
        }
    }

    private func begin(_ end: @escaping @Sendable (_ isDone: Bool) -> Void) -> Bool {
        let (kind, isHolding) = state.withLock { state in
            (state.isHolding ? 2 : Int.random(in: 0..<4, using: &state.generator), state.isHolding)
        }
        let end: @Sendable () -> Void = { end(kind != 1) }
        switch kind {
        case 0: return false
        case _ where isHolding: state.withLock { $0.held.append(end) }
        default: engine.callSoon(end)
        }
        return true
    }

    func hold() { state.withLock { $0.isHolding = true } }

    var heldCount: Int { state.value.held.count }

    /// On the engine, one after another in one step.
    func release() {
        let held = state.withLock { state in
            defer { (state.isHolding, state.held) = (false, []) }
            return state.held
        }
        engine.callSoon { for end in held { end() } }
    }
}

/// Requests that are begun without a task, which a ring does.
@Suite("Requests without a task", .enabled(if: EngineKind.preferred() == .ring))
struct BegunRequestTests {
    private static let read: UInt16 = 0, write: UInt16 = 1

    private static func start(seed: UInt64) async throws -> (ServerUnderTest, LateDisk) {
        let test = try await ServerUnderTest.start(.ring)
        let disk = LateDisk(SimDisk(size: 1 << 20, engine: test.engine, name: "late"), seed: seed)
        let content = IOBuffer(count: 1 << 20)
        for position in 0..<content.count / 8 {
            content.bytes.storeBytes(of: UInt64(position), toByteOffset: position * 8, as: UInt64.self)
        }
        try await test.engine.run { () async throws(BlockError) in
            try await disk.write(disk.range, from: content.slice)
        }
        try test.server.add(NBDExport(name: "a", device: disk, isReadOnly: false))
        return (test, disk)
    }

    @Test("each is answered once with what the disk has, or with its error")
    func answers() async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let (test, disk) = try await Self.start(seed: seed)
        let client = try await RawClient.open(test.path, "a", structured: false)
        let bad = ByteRange(offset: 512 << 10, length: 4096)
        disk.disk.fail(.read, touching: bad, with: BlockError(.inputOutput, "Couldn't read it"))
        for _ in 0..<20 {
            var ranges: [UInt64: ByteRange] = [:]
            for cookie in 0..<UInt64(100) {
                let offset = Int.random(in: 0..<255, using: &random) * 4096
                ranges[cookie] = ByteRange(
                    offset: UInt64(offset), length: UInt64.random(in: 1...4096, using: &random))
            }
            for (cookie, range) in ranges {
                try await client.send(
                    RawClient.request(
                        Self.read, cookie: cookie, offset: range.offset, length: UInt32(range.length)))
            }
            while !ranges.isEmpty {
                try #require(try await client.integer(UInt32.self) == NBDProtocol.simpleReplyMagic)
                let error = try await client.integer(UInt32.self)
                let range = try #require(
                    ranges.removeValue(forKey: try await client.integer(UInt64.self)), "seed \(seed)")
                // What was begun and filled knows nothing of the error, which is one of `read`.
                guard error == 0 else {
                    #expect(error == 5 && range.overlaps(bad), "seed \(seed)")
                    continue
                }
                let data = try await client.receive(Int(range.length))
                let isRight = data == disk.disk.contents(of: range)
                #expect(isRight, "\(range), seed \(seed)")
            }
        }
        try await test.stop()
    }

    @Test("what was answered is on the disk, all of it")
    func writes() async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let (test, disk) = try await Self.start(seed: seed)
        let client = try await RawClient.open(test.path, "a", structured: false)
        let bad = ByteRange(offset: 512 << 10, length: 4096)
        disk.disk.fail(.write, touching: bad, with: BlockError(.noSpace, "full"))
        var expected = disk.disk.contents(of: disk.range)
        for round in 0..<20 {
            // No two of a round touch the same bytes: which of them came last would be anybody's guess.
            var ranges: [UInt64: ByteRange] = [:]
            for cookie in 0..<UInt64(60) {
                ranges[cookie] = ByteRange(
                    offset: cookie * 16384 + UInt64.random(in: 0..<4096, using: &random),
                    length: UInt64.random(in: 1...12288, using: &random))
            }
            for (cookie, range) in ranges {
                let payload = (0..<range.length).map { _ in UInt8.random(in: 0...255, using: &random) }
                let isWhole = random.oneIn(2)
                let header = RawClient.request(
                    Self.write, cookie: cookie, offset: range.offset, length: UInt32(range.length))
                // In one piece with its header, or after it.
                try await client.send(isWhole ? header + payload : header)
                if !isWhole { try await client.send(payload) }
                guard !range.overlaps(bad) else { continue }
                expected.replaceSubrange(Int(range.offset)..<Int(range.end), with: payload)
            }
            while !ranges.isEmpty {
                try #require(try await client.integer(UInt32.self) == NBDProtocol.simpleReplyMagic)
                let error = try await client.integer(UInt32.self)
                let range = try #require(
                    ranges.removeValue(forKey: try await client.integer(UInt64.self)), "seed \(seed)")
                #expect(error == (range.overlaps(bad) ? 28 : 0), "seed \(seed)")
                if error != 0 {
                    // Any part of it may be there.
                    let (start, end) = (Int(range.offset), Int(range.end))
                    expected.replaceSubrange(start..<end, with: disk.disk.contents(of: range))
                }
            }
            let isRight = disk.disk.contents(of: disk.range) == expected
            #expect(isRight, "round \(round), seed \(seed)")
        }
        try await test.stop()
    }

    @Test("those of a client that sends nothing more are answered, and then it is let go")
    func lastAnswers() async throws {
        let (test, disk) = try await Self.start(seed: 1)
        for turns in 0..<16 {
            let client = try await RawClient.open(test.path, "a", structured: false)
            disk.hold()
            for cookie in 0..<UInt64(8) {
                try await client.send(
                    RawClient.request(Self.read, cookie: cookie, offset: cookie * 4096, length: 4096))
            }
            while disk.heldCount < 8 { await Task.yield() }
            client.endSending()
            // Before the server knows of that, or after.
            for _ in 0..<turns { await test.engine.blocking {} }
            disk.release()
            for _ in 0..<8 { _ = try await client.receive(16 + 4096) }
            await client.waitForEnd()
        }
        try await test.stop()
    }

    @Test("those of a client that has gone are waited for")
    func gone() async throws {
        let (test, disk) = try await Self.start(seed: 1)
        let client = try await RawClient.open(test.path, "a", structured: false)
        disk.hold()
        for cookie in 0..<UInt64(8) {
            try await client.send(RawClient.request(Self.read, cookie: cookie, length: 4096))
        }
        while disk.heldCount < 8 { await Task.yield() }
        client.socket.shutDown()
        // The disk still fills their memory.
        #expect(await !test.server.remove("a", within: .milliseconds(50)))
        disk.release()
        try await test.stop()
    }
}
