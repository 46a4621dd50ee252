internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("Serving")
struct ServingTests {
    private static let read: UInt16 = 0, write: UInt16 = 1, disconnect: UInt16 = 2, flush: UInt16 = 3
    private static let trim: UInt16 = 4, zero: UInt16 = 6, status: UInt16 = 7

    @Test("errors of the device and of the client arrive as what they are", arguments: [true, false])
    func errors(structured: Bool) async throws {
        let test = try await ServerUnderTest.start()
        let disk = try test.addDisk("a", bytes: 8 << 20)
        let client = try await RawClient.open(test.path, structured: structured)
        func error(
            _ type: UInt16, flags: UInt16 = 0, offset: UInt64 = 0, length: UInt32 = 512, payload: [UInt8] = []
        ) async throws -> UInt32 {
            let cookie = UInt64.random(in: 0 ... .max)
            return try await client.ask(
                type, cookie: cookie, flags: flags, offset: offset, length: length, payload: payload,
                answer: type == 0 ? Int(length) : 0
            ).error
        }
        let block = [UInt8](repeating: 7, count: 512)
        disk.fail(.read, times: 1, with: BlockError(.inputOutput, "Couldn't read /secret"))
        #expect(try await error(Self.read) == 5)
        disk.fail(.write, times: 1, with: BlockError(.noSpace, "full"))
        #expect(try await error(Self.write, payload: block) == 28)
        disk.fail(.flush, times: 2, with: BlockError(.inputOutput, "lost"))
        #expect(try await error(Self.flush, length: 0) == 5)
        #expect(try await error(Self.write, flags: 1, payload: block) == 5)
        disk.fail(.discard, times: 1, with: BlockError(.unsupported, "no"))
        #expect(try await error(Self.trim) == 5)
        // A simulated disk does not say that it is quick.
        #expect(try await error(Self.zero, flags: 16) == 95)
        #expect(try await error(99) == 22)
        #expect(try await error(Self.read, flags: 2) == 22)
        #expect(try await error(Self.read, offset: 8 << 20) == 22)
        #expect(try await error(Self.write, offset: 8 << 20, payload: block) == 28)
        // The connection has borne it all, and payloads were dropped.
        #expect(try await error(Self.write, payload: block) == 0)
        #expect(try await error(Self.read, length: 0) == 0)
        #expect(disk.contents(of: ByteRange(offset: 0, length: 512)) == block)
        try await client.send(RawClient.request(Self.disconnect))
        await client.waitForEnd()
        #expect(test.said.value.contains { $0.contains("/secret") })
        try await test.stop()
    }

    @Test("a flush and FUA reach the device before the answer")
    func flushes() async throws {
        let test = try await ServerUnderTest.start()
        let disk = try test.addDisk("a", bytes: 1 << 20)
        let client = try await RawClient.open(test.path)
        for (type, flags, expected) in [
            (Self.write, UInt16(0), [SimDisk.Operation.write]), (Self.write, 1, [.write, .flush]),
            (Self.zero, 1, [.writeZeroes, .flush]), (Self.trim, 1, [.discard, .flush]),
            (Self.flush, 0, [.flush]),
            (Self.read, 1, [.read]),
        ] {
            disk.forgetCalls()
            let payload = [UInt8](repeating: 1, count: type == Self.write ? 512 : 0)
            let answer = try await client.ask(
                type, flags: flags, length: type == Self.flush ? 0 : 512, payload: payload)
            #expect(answer.error == 0)
            #expect(disk.calls.map(\.operation) == expected)
        }
        // Whatever else a flush says means nothing.
        for (offset, length): (UInt64, UInt32) in [(.max, 1), (1 << 20, .max), (.max, 0), (3, 5)] {
            #expect(try await client.ask(Self.flush, offset: offset, length: length).error == 0)
        }
        try await test.stop()
    }

    @Test(
        "answers that fill the socket, some of them only in part, arrive whole",
        arguments: EngineKind.allCases)
    func fillingTheSocket(kind: EngineKind) async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let test = try await ServerUnderTest.start(kind)
        let file = try await test.addFile("a", bytes: 4 << 20)
        let content = IOBuffer(count: 4 << 20)
        for position in 0..<content.count / 8 {
            content.bytes.storeBytes(of: UInt64(position), toByteOffset: position * 8, as: UInt64.self)
        }
        try await test.engine.run { () async throws(BlockError) in
            try await file.write(file.range, from: content.slice)
        }
        let client = try await RawClient.open(test.path, structured: false)
        let filling = 110
        for round in 0..<20 {
            // Short writes at first: so many requests fit into the client's socket, whatever the server has taken of them.
            let ranges = (0..<160).map { index in
                let offset = Int.random(in: 0..<(4 << 20) - 65536, using: &random)
                let longest = index % 8 == 7 && index < filling ? 4096 : 65536
                return offset..<offset + Int.random(in: 1...longest, using: &random)
            }
            // One by one, so that each is served as it comes; the writes among them are of what is there.
            func send(_ indices: Range<Int>) async throws {
                for index in indices {
                    let (range, isWrite) = (ranges[index], index % 8 == 7)
                    try await client.send(
                        RawClient.request(
                            isWrite ? Self.write : Self.read, cookie: UInt64(index),
                            offset: UInt64(range.lowerBound),
                            length: UInt32(range.count)) + (isWrite ? Array(content.bytes[range]) : []))
                }
            }
            // The server's socket is full by then. A client that sent all without reading might wait for ever.
            try await send(0..<filling)
            async let rest: Void = send(filling..<ranges.count)
            var missing = Set(ranges.indices)
            while !missing.isEmpty {
                try #require(try await client.integer(UInt32.self) == NBDProtocol.simpleReplyMagic)
                #expect(try await client.integer(UInt32.self) == 0)
                let index = Int(try await client.integer(UInt64.self))
                #expect(missing.remove(index) != nil)
                guard index % 8 != 7 else { continue }
                let data = Data(try await client.receive(ranges[index].count))
                #expect(
                    data == Data(content.bytes[ranges[index]]),
                    "round \(round), request \(index), seed \(seed)")
            }
            try await rest
        }
        try await test.stop()
    }

    @Test("answers overtake each other and keep their cookies")
    func outOfOrder() async throws {
        let test = try await ServerUnderTest.start()
        let disk = try test.addDisk("a", bytes: 1 << 20)
        disk.hold { $0.operation == .read && $0.range.offset == 0 }
        let client = try await RawClient.open(test.path)
        try await client.send(
            RawClient.request(Self.read, cookie: 1, length: 4)
                + RawClient.request(Self.read, cookie: 2, offset: 512, length: 4)
                + RawClient.request(Self.flush, cookie: .max))
        #expect(Set([try await client.reply().cookie, try await client.reply().cookie]) == [2, .max])
        disk.release()
        #expect(try await client.reply().cookie == 1)
        try await test.stop()
    }

    @Test(
        "the largest requests work, whatever the form of the replies", arguments: [true, false],
        EngineKind.allCases)
    func large(structured: Bool, kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        let size: UInt32 = 32 << 20
        _ = try await test.addFile("a", bytes: 40 << 20)
        let client = try await RawClient.open(test.path, structured: structured)
        var generator = SeededGenerator(1)
        var data = [UInt8](repeating: 0, count: Int(size))
        for index in stride(from: 0, to: data.count, by: 509) {
            data[index] = UInt8.random(in: 0...255, using: &generator)
        }
        #expect(
            try await client.ask(Self.write, cookie: 5, offset: 777, length: size, payload: data).error == 0)
        // Small ones in between must not tear it.
        try await client.send(
            RawClient.request(Self.read, cookie: 7, offset: 777, length: size)
                + RawClient.request(Self.read, cookie: 8, offset: 777, length: 100))
        var found = [UInt8](repeating: 0, count: Int(size))
        var small: [UInt8] = []
        if structured {
            var left = 2
            while left > 0 {
                let chunk = try await client.reply()
                try #require(chunk.type == .offsetData)
                let offset = Int(chunk.payload[..<8].reduce(UInt64(0)) { ($0 << 8) | UInt64($1) }) - 777
                let bytes = chunk.payload[8...]
                if chunk.cookie == 7 {
                    found.replaceSubrange(offset..<offset + bytes.count, with: bytes)
                } else {
                    small = Array(bytes)
                }
                if chunk.isLast { left -= 1 }
            }
        } else {
            for _ in 0..<2 {
                #expect(try await client.integer(UInt32.self) == NBDProtocol.simpleReplyMagic)
                #expect(try await client.integer(UInt32.self) == 0)
                if try await client.integer(UInt64.self) == 7 {
                    found = try await client.receive(Int(size))
                } else {
                    small = try await client.receive(100)
                }
            }
        }
        #expect(found == data)
        #expect(small == Array(data[..<100]))
        // Too long by a byte: refused, and the payload dropped.
        let long = try await client.ask(Self.write, cookie: 9, length: size + 1, payload: data + [0])
        #expect(long.error == 22)
        #expect(try await client.ask(Self.read, flags: 0, length: 4, answer: 4).error == 0)
        if structured {
            #expect(try await client.ask(Self.read, flags: 4, length: 4 << 20).error == 75)
            let whole = try await client.ask(Self.read, flags: 4, offset: 777, length: 2 << 20)
            #expect(whole.isLast && Array(whole.payload[8...]) == Array(data[..<(2 << 20)]))
        }
        try await test.stop()
        #expect(test.said.value == [])
    }

    @Test("an error in the middle of a long read is told", arguments: [true, false])
    func errorInTheMiddle(structured: Bool) async throws {
        let test = try await ServerUnderTest.start()
        let disk = try test.addDisk("a", bytes: 16 << 20)
        disk.fail(
            .read, touching: ByteRange(offset: 5 << 20, length: 1), with: BlockError(.inputOutput, "bad"))
        let client = try await RawClient.open(test.path, structured: structured)
        try await client.send(RawClient.request(Self.read, cookie: 3, length: 8 << 20))
        if structured {
            var last = try await client.reply()
            while !last.isLast { last = try await client.reply() }
            #expect(last.error == 5 && last.cookie == 3)
            #expect(try await client.ask(Self.read, length: 16).error == 0)
        } else {
            // There is no other way in a simple reply.
            await client.waitForEnd()
        }
        try await test.stop()
    }

    @Test("block status tells data from holes, one extent or many")
    func blockStatus() async throws {
        let test = try await ServerUnderTest.start()
        let disk = try test.addDisk("a", bytes: 64 << 20)
        for index in 0..<4 {
            disk.setContents(at: UInt64(index) * (16 << 20), [UInt8](repeating: 1, count: 65536))
        }
        let client = try await RawClient.open(test.path)
        func extents(_ offset: UInt64, _ length: UInt32, flags: UInt16 = 0) async throws -> [[UInt32]] {
            let chunk = try await client.ask(Self.status, flags: flags, offset: offset, length: length)
            try #require(chunk.type == .blockStatus && chunk.isLast)
            var reader = ByteReader(chunk.payload[...])
            #expect(reader.integer(UInt32.self) == 1)
            var extents: [[UInt32]] = []
            while let length = reader.integer(UInt32.self), let flags = reader.integer(UInt32.self) {
                extents.append([length, flags])
            }
            return extents
        }
        let whole = try await extents(0, 64 << 20)
        #expect(whole.reduce(0) { $0 + $1[0] } == 64 << 20)
        #expect(whole.count == 8)
        #expect(whole.map { $0[1] } == [0, 3, 0, 3, 0, 3, 0, 3])
        #expect(try await extents(0, 64 << 20, flags: 8).count == 1)
        #expect(try await extents(1 << 20, 4096) == [[4096, 3]])
        try await test.stop()
    }

    @Test("a read-only export refuses what would change it")
    func readOnly() async throws {
        let test = try await ServerUnderTest.start()
        let disk = try test.addDisk("a", bytes: 1 << 20, isReadOnly: true)
        let client = try await RawClient.open(test.path)
        for type in [Self.write, Self.trim, Self.zero] {
            let payload = [UInt8](repeating: 1, count: type == Self.write ? 512 : 0)
            #expect(try await client.ask(type, length: 512, payload: payload).error == 1)
        }
        #expect(try await client.ask(Self.flush).error == 0)
        #expect(disk.calls.map(\.operation) == [.flush])
        let said = try await expectSuccess("nbdinfo", [test.uri()])
        #expect(said.contains("is_read_only: true"))
        try await test.stop()
    }

    @Test("an export that is removed refuses new requests, ends those that run, and is gone")
    func removal() async throws {
        let test = try await ServerUnderTest.start()
        let disk = try test.addDisk("a", bytes: 1 << 20)
        _ = try test.addDisk("b", bytes: 1 << 20)
        #expect(throws: BlockError.self) { _ = try test.addDisk("a", bytes: 1) }
        let client = try await RawClient.open(test.path, "a")
        var idle: [RawClient] = []
        for _ in 0..<12 { idle.append(try await RawClient.open(test.path, "a")) }
        let other = try await RawClient.open(test.path, "b")
        #expect(test.server.clients(of: "a") == 13)
        disk.hold()
        try await client.send(RawClient.request(Self.write, cookie: 1, length: 4) + [1, 2, 3, 4])
        while disk.heldCalls.isEmpty { await Task.yield() }
        async let removed = test.server.remove("a", within: .seconds(60))
        // The idle ones are disconnected at once; when one is, the export serves none any more.
        try await withThrowingTaskGroup(of: Void.self) { group in
            for idle in idle { group.addTask { await idle.waitForEnd() } }
            try await group.next()
            #expect(try await client.ask(Self.read, cookie: 2, length: 4).error == 108)
            try await group.waitForAll()
        }
        #expect(test.server.clients(of: "a") == 0)
        let late = try await RawClient(test.path)
        try await late.greet()
        try await late.option(7, RawClient.string("a") + [0, 0])
        #expect(try await late.optionReply().type == OptionReply.unknown.rawValue)
        disk.release()
        let answer = try await client.reply()
        #expect(answer.cookie == 1 && answer.error == 0)
        await client.waitForEnd()
        #expect(await removed)
        #expect(disk.contents(of: ByteRange(offset: 0, length: 4)) == [1, 2, 3, 4])
        #expect(try await other.ask(Self.read, length: 4).error == 0)
        // "b" is the default now, and the name is free again.
        _ = try test.addDisk("a", bytes: 1)
        try await test.stop()
        await other.waitForEnd()
    }

    @Test("a device that hangs does not hold up the end of its export, which says so")
    func hangingDevice() async throws {
        let test = try await ServerUnderTest.start()
        let disk = try test.addDisk("a", bytes: 1 << 20)
        disk.hold()
        let client = try await RawClient.open(test.path)
        try await client.send(RawClient.request(Self.read, cookie: 1, length: 4))
        while disk.heldCalls.isEmpty { await Task.yield() }
        #expect(!test.server.isLeaving("a"))
        #expect(await !test.server.remove("a", within: .milliseconds(1)))
        await client.waitForEnd()
        #expect(test.server.isLeaving("a"))
        disk.release()
        while test.server.isLeaving("a") { await Task.yield() }
        try await test.stop()
    }

    @Test("a socket file is replaced when nobody answers on it, and refused when somebody does")
    func socketFiles() async throws {
        let test = try await ServerUnderTest.start()
        let mode = try FileManager.default.attributesOfItem(atPath: test.path)[.posixPermissions] as? Int
        #expect(mode == 0o660)
        func open(_ path: String) async throws -> NBDServer {
            try await NBDServer(listening: .unix(path: path), engine: test.engine) { _ in }
        }
        await #expect(throws: BlockError.self) { _ = try await open(test.path) }
        // A process that was killed leaves this.
        let stale = test.directory.file("stale")
        try await expectSuccess(
            "/usr/bin/python3",
            ["-c", "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])", stale])
        #expect(FileManager.default.fileExists(atPath: stale))
        let second = try await open(stale)
        #expect(await second.shutDown(within: .seconds(10)))
        #expect(!FileManager.default.fileExists(atPath: stale))
        let file = test.directory.file("file")
        try Data([1]).write(to: URL(fileURLWithPath: file))
        await #expect(throws: BlockError.self) { _ = try await open(file) }
        #expect(FileManager.default.contents(atPath: file) == Data([1]))
        await #expect(throws: BlockError.self) {
            _ = try await open(test.directory.file(String(repeating: "x", count: 200)))
        }
        // One that another server has put in the place of ours is not ours to remove.
        try FileManager.default.removeItem(atPath: test.path)
        try Data([2]).write(to: URL(fileURLWithPath: test.path))
        try await test.stop()
        #expect(FileManager.default.contents(atPath: test.path) == Data([2]))
    }

    @Test("libnbd's Python module finds what a model expects", arguments: EngineKind.allCases)
    func model(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        _ = try await test.addFile("a", bytes: 4_000_037)
        let seed = testSeed()
        try await expectSuccess(
            "/usr/bin/python3",
            ["-c", Self.script, test.uri("a"), String(seed), String(testRounds(150))])
        try await test.stop()
    }

    /// Random requests, many in flight on four connections, each in a part of its own, against an array of bytes.
    private static let script = """
        import nbd, random, sys
        uri, seed, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        chance = random.Random(seed)
        handles = []
        for i in range(4):
            h = nbd.NBD()
            h.add_meta_context("base:allocation")
            h.set_strict_mode(0)
            h.connect_uri(uri)
            handles.append(h)
        size = handles[0].get_size()
        model = bytearray(size)
        part = size // 64
        for turn in range(turns):
            pending = []
            for n in range(64):
                h = chance.choice(handles)
                start = n * part + chance.randrange(part)
                length = min(chance.choice([1, 17, 512, 4096, 40000]), (n + 1) * part - start)
                kind = chance.randrange(6)
                fua = nbd.CMD_FLAG_FUA if chance.randrange(10) == 0 else 0
                if kind < 2:
                    data = chance.randbytes(length)
                    model[start:start + length] = data
                    pending.append((h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), start, flags=fua), None))
                elif kind == 2:
                    model[start:start + length] = bytes(length)
                    flags = fua | (nbd.CMD_FLAG_NO_HOLE if chance.randrange(2) else 0)
                    pending.append((h, h.aio_zero(length, start, flags=flags), None))
                elif kind == 3:
                    pending.append((h, h.aio_flush(), None))
                else:
                    buffer = nbd.Buffer(length)
                    pending.append((h, h.aio_pread(buffer, start), (buffer, start, length)))
            for h, cookie, wanted in pending:
                while not h.aio_command_completed(cookie):
                    h.poll(-1)
                if wanted:
                    buffer, start, length = wanted
                    assert buffer.to_bytearray() == model[start:start + length], (turn, start, length)
        assert handles[0].pread(size, 0) == model
        found = []
        def extent(context, offset, entries, error):
            found.extend(entries)
        handles[1].block_status(size, 0, extent)
        assert sum(found[0::2]) <= size and found
        for h in handles:
            h.shutdown()
        """
}
