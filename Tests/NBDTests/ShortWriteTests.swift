internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import NBD

/// A disk that notes which writes it was told of before they came.
private final class ExpectingDisk: DiskAbove {
    let below: any BlockDevice
    let expected = Locked<[[ByteRange]]>([])

    init(_ disk: any BlockDevice) { below = disk }

    func expectWrites(_ ranges: () -> [ByteRange]) {
        let ranges = ranges()
        if !ranges.isEmpty { expected.withLock { $0.append(ranges) } }
    }
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

    @Test("are told of before they come, if more than one will be served", arguments: EngineKind.allCases)
    func next(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        let disk = ExpectingDisk(SimDisk(size: UInt64(Self.size), engine: test.engine, name: "next"))
        try test.server.add(NBDExport(name: "a", device: disk, isReadOnly: false))
        let client = try await RawClient.open(test.path, "a", structured: false)
        func write(_ offset: UInt64, _ length: Int) -> [UInt8] {
            RawClient.request(Self.write, cookie: offset, offset: offset, length: UInt32(length))
                + [UInt8](repeating: 7, count: length)
        }
        /// What is sent in one piece comes in one; the beginning of a header is none.
        func send(_ stream: [UInt8], answers: Int, read: Int = 0) async throws -> [[UInt64]] {
            disk.expected.withLock { $0 = [] }
            try await client.send(stream + [0x25, 0x60, 0x95])
            for _ in 0..<answers {
                let reply = try await client.reply()
                #expect((reply.error == 0) == (reply.cookie != .max))
                if reply.cookie == 1 { _ = try await client.receive(read) }
            }
            let next = write(8, 512)
            try await client.send(Array(next[3...]))
            #expect(try await client.reply().error == 0)
            return disk.expected.value.map { $0.map(\.offset) }
        }
        // One that comes alone needs nothing.
        #expect(try await send(write(8192, 4096), answers: 1) == [])
        // Reads in between are no matter, but nothing is told of what is refused, nor of what follows it.
        let read = RawClient.request(0, cookie: 1, offset: 0, length: 512)
        let stream = write(8192, 4096) + read + write(0, 512) + write(.max, 4096) + write(4096, 4096)
        #expect(try await send(stream, answers: 5, read: 512) == [[8192, 0]])
        // A few at a time.
        let many = (0..<11).map { UInt64($0) * 4096 }
        let told = try await send(many.flatMap { write($0, 512) }, answers: many.count)
        #expect(told == [Array(many[..<8]), Array(many[8...])])
        // Only what is whole, as the rest of it may never come.
        let half = write(12288, 4096)
        disk.expected.withLock { $0 = [] }
        try await client.send(write(0, 512) + write(512, 512) + half[..<1000])
        for _ in 0..<2 { #expect(try await client.reply().error == 0) }
        #expect(disk.expected.value.map { $0.map(\.offset) } == [[0, 512]])
        try await client.send(Array(half[1000...]))
        #expect(try await client.reply().error == 0)
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
