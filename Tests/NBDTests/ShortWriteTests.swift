internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import NBD

/// A disk that notes which writes it was told of before they came.
private final class ExpectingDisk: DiskAbove {
    let below: any BlockDevice
    let expected = Locked<[UInt64]>([])

    init(_ disk: any BlockDevice) { below = disk }

    func expectWrite(at offset: UInt64) { expected.withLock { $0.append(offset) } }
}

@Suite("Short writes, many at a time")
struct ShortWriteTests {
    private static let size = 4 << 20
    private static let slot = 64 << 10
    private static let write: UInt16 = 1

    private static func length(_ random: inout SeededGenerator) -> Int {
        switch Int.random(in: 0..<4, using: &random) {
        case 0: Int.random(in: 1...64, using: &random)
        case 1: 4096
        case 2: slot
        default: Int.random(in: 1...slot, using: &random)
        }
    }

    /// Writes that do not overlap, some of them refused, as one stream; what becomes of each, and of the disk.
    private static func burst(
        _ model: inout Data, _ random: inout SeededGenerator
    ) -> (stream: [UInt8], errors: [UInt64: UInt32]) {
        var stream: [UInt8] = []
        var errors: [UInt64: UInt32] = [:]
        for cookie in 0..<UInt64.random(in: 1...64, using: &random) {
            let length = length(&random)
            let isRefused = random.oneIn(8)
            let offset =
                isRefused
                ? size - length + 1 : Int(cookie) * slot + Int.random(in: 0...slot - length, using: &random)
            let payload = (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) }
            if !isRefused { model.replaceSubrange(offset..<offset + length, with: payload) }
            errors[cookie] = isRefused ? 28 : 0
            stream += RawClient.request(write, cookie: cookie, offset: UInt64(offset), length: UInt32(length))
            stream += payload
        }
        return (stream, errors)
    }

    @Test("are done whole, however the stream is cut", arguments: EngineKind.allCases)
    func content(kind: EngineKind) async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let test = try await ServerUnderTest.start(kind)
        _ = try await test.addFile("a", bytes: UInt64(Self.size))
        let client = try await RawClient.open(test.path, "a", structured: false)
        var model = Data(count: Self.size)
        for round in 0..<20 {
            var (stream, errors) = Self.burst(&model, &random)
            while !stream.isEmpty {
                let longest = random.oneIn(3) ? 40 : random.oneIn(2) ? 5000 : stream.count
                let part = Int.random(in: 1...min(longest, stream.count), using: &random)
                try await client.send(Array(stream[..<part]))
                stream.removeFirst(part)
                if random.oneIn(2) { await Task.yield() }
            }
            while !errors.isEmpty {
                let reply = try await client.reply()
                #expect(errors.removeValue(forKey: reply.cookie) == reply.error, "seed \(seed)")
            }
            let content = try await client.ask(0, length: UInt32(Self.size), answer: Self.size).payload
            #expect(Data(content) == model, "round \(round), seed \(seed)")
        }
        try await test.stop()
    }

    @Test("tell of the one that comes next, if it has come", arguments: EngineKind.allCases)
    func next(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        let disk = ExpectingDisk(SimDisk(size: UInt64(Self.size), engine: test.engine, name: "next"))
        try test.server.add(NBDExport(name: "a", device: disk, isReadOnly: false))
        let client = try await RawClient.open(test.path, "a", structured: false)
        // What is sent in one piece comes in one. The last but one is refused.
        let offsets: [UInt64] = [8192, 0, .max, 4096]
        let stream = offsets.flatMap { offset in
            RawClient.request(Self.write, cookie: offset, offset: offset, length: 4096)
                + [UInt8](repeating: 7, count: 4096)
        }
        // The beginning of a header is none.
        try await client.send(stream + [0x25, 0x60, 0x95])
        for _ in offsets {
            let reply = try await client.reply()
            #expect((reply.error == 0) == (reply.cookie != .max))
        }
        #expect(disk.expected.value == [0, .max])
        try await test.stop()
    }

    @Test(
        "hold no memory that others wait for while their payload is still to come",
        arguments: EngineKind.allCases)
    func halves(kind: EngineKind) async throws {
        var limits = NBDLimits.patient
        limits.memory = RequestMemory()
        let test = try await ServerUnderTest.start(kind, limits: limits)
        _ = try await test.addFile("a", bytes: UInt64(Self.size))
        let client = try await RawClient.open(test.path, "a", structured: false)
        let request =
            RawClient.request(Self.write, cookie: 1, length: 4096) + Array(repeating: 7, count: 4096)
        // Behind a whole one, whose answer tells that the half has been looked at, too.
        try await client.send(RawClient.request(3, cookie: 2) + request[..<2000])
        #expect(try await client.reply().cookie == 2)
        // Another one is served meanwhile, and what was begun can be ended.
        let other = try await RawClient.open(test.path, "a", structured: false)
        #expect(try await other.ask(0, length: 4096, answer: 4096).payload.allSatisfy { $0 == 0 })
        // What it read with is given back before it is heard again.
        _ = try await other.ask(3)
        #expect(limits.memory.used == 0)
        try await client.send(Array(request[2000...]))
        #expect(try await client.reply().error == 0)
        #expect(try await other.ask(0, length: 4096, answer: 4096).payload.allSatisfy { $0 == 7 })
        // Who leaves in the middle has written nothing.
        try await client.send(Array(RawClient.request(Self.write, length: 4096) + [1, 2, 3]))
        client.endSending()
        await client.waitForEnd()
        #expect(try await other.ask(0, length: 4096, answer: 4096).payload.allSatisfy { $0 == 7 })
        // Nor is it waited for when the export goes away.
        let last = try await RawClient.open(test.path, "a", structured: false)
        try await last.send(RawClient.request(3, cookie: 3) + request[..<2000])
        #expect(try await last.reply().cookie == 3)
        #expect(await test.server.remove("a", within: .seconds(3600)))
        await last.waitForEnd()
        try await test.stop()
    }
}
