internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import NBD

/// A disk that notes which writes it was to do at once, as a simulated disk never does, and holds zeroes when it is told to.
private final class NotingDisk: DiskAbove {
    let below: any BlockDevice
    let tried = Locked<[UInt64]>([])
    let done = Locked(0)
    private let held = Locked<(isHolding: Bool, waiting: [CheckedContinuation<Void, Never>])>((false, []))

    init(_ disk: any BlockDevice) { below = disk }

    func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        tried.withLock { $0.append(range.length) }
        guard below.writeAtOnce(range, from: buffer) else { return false }
        done.withLock { $0 += 1 }
        return true
    }

    func hold() { held.withLock { $0.isHolding = true } }

    var heldCount: Int { held.value.waiting.count }

    func release() {
        let waiting = held.withLock { held in
            defer { held = (false, []) }
            return held.waiting
        }
        for continuation in waiting { continuation.resume() }
    }

    func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        if held.value.isHolding {
            await withCheckedContinuation { continuation in
                held.withLock { $0.waiting.append(continuation) }
            }
        }
        try await below.writeZeroes(range, mayUnmap: mayUnmap)
    }
}

@Suite("Long writes in the step in which they come")
struct LongWriteTests {
    private static let write: UInt16 = 1, flush: UInt16 = 3, zero: UInt16 = 6, fua: UInt16 = 1
    private static let length: UInt32 = 300 << 10
    /// Up to here all writes are tried.
    private static let short: UInt32 = 256 << 10
    /// More than it takes until a client counts as one that has one request on its way.
    private static let many = 20

    private static func start(
        _ kind: EngineKind, on device: ((ServerUnderTest) async throws -> any BlockDevice)? = nil
    ) async throws -> (ServerUnderTest, NotingDisk, RawClient) {
        let test = try await ServerUnderTest.start(kind)
        let disk = NotingDisk(
            try await device?(test) ?? SimDisk(size: 8 << 20, engine: test.engine, name: "long"))
        try test.server.add(NBDExport(name: "a", device: disk, isReadOnly: false))
        return (test, disk, try await RawClient.open(test.path, "a", structured: false))
    }

    private static func send(
        _ client: RawClient, _ value: UInt8, length: UInt32 = length, flags: UInt16 = 0
    ) async throws {
        let answer = try await client.ask(
            write, cookie: UInt64(value), flags: flags, length: length,
            payload: Array(repeating: value, count: Int(length)))
        #expect(answer.error == 0)
    }

    /// How many long writes were tried since it was asked last.
    private static func tries(_ disk: NotingDisk) -> Int {
        disk.tried.withLock { tried in
            defer { tried = [] }
            return tried.filter { $0 > UInt64(short) }.count
        }
    }

    @Test("are those of a client that sends one at a time", arguments: EngineKind.allCases)
    func alone(kind: EngineKind) async throws {
        let (test, disk, client) = try await Self.start(kind)
        for turn in 0..<Self.many { try await Self.send(client, UInt8(turn)) }
        let tries = Self.tries(disk)
        #expect((Self.many / 2..<Self.many).contains(tries), "not the first ones, but most")
        // The longest, and longer ones, which take their time.
        try await Self.send(client, 50, length: 1 << 20)
        #expect(Self.tries(disk) == 1)
        try await Self.send(client, 51, length: (1 << 20) + 512)
        #expect(Self.tries(disk) == 0)
        // What has to be on the disk waits for it.
        try await Self.send(client, 52, flags: Self.fua)
        #expect(Self.tries(disk) == 0)
        try await Self.send(client, 53)
        #expect(Self.tries(disk) == 1)
        let content = try await client.ask(0, length: (1 << 20) + 512, answer: (1 << 20) + 512).payload
        #expect(content[..<Int(Self.length)].allSatisfy { $0 == 53 })
        #expect(content[Int(Self.length)...].allSatisfy { $0 == 51 })
        try await test.stop()
    }

    @Test("bring what was sent to where it belongs", arguments: EngineKind.allCases)
    func content(kind: EngineKind) async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let (test, disk, client) = try await Self.start(kind) { test in
            try await test.addFile("b", bytes: 4 << 20)
        }
        var model = Data(count: 4 << 20)
        let pattern = Data((0..<(1 << 20) + 251).map { UInt8(truncatingIfNeeded: $0 % 251) })
        for _ in 0..<60 {
            let length = Int.random(in: 65_537...1 << 20, using: &random)
            let offset = Int.random(in: 0...(4 << 20) - length, using: &random)
            let start = Int.random(in: 0..<251, using: &random)
            model.replaceSubrange(offset..<offset + length, with: pattern[start..<start + length])
            var rest =
                RawClient.request(Self.write, cookie: 1, offset: UInt64(offset), length: UInt32(length))
                + [UInt8](pattern[start..<start + length])
            // It comes in parts of any size, or as a whole.
            while !rest.isEmpty {
                let part =
                    Bool.random(using: &random) ? rest.count : Int.random(in: 1...rest.count, using: &random)
                try await client.send(Array(rest[..<part]))
                rest.removeFirst(part)
                if Bool.random(using: &random) { await Task.yield() }
            }
            #expect(try await client.reply().error == 0)
        }
        let content = try await client.ask(0, length: 4 << 20, answer: 4 << 20).payload
        #expect(Data(content) == model, "seed \(seed)")
        if kind == .ring { #expect(disk.done.value > 0) }
        try await test.stop()
    }

    @Test("are none where another client has the export open", arguments: EngineKind.allCases)
    func shared(kind: EngineKind) async throws {
        let (test, disk, client) = try await Self.start(kind)
        let other = try await RawClient.open(test.path, "a")
        _ = try await other.ask(Self.flush)
        for turn in 0..<Self.many { try await Self.send(client, UInt8(turn)) }
        #expect(Self.tries(disk) == 0)
        try await Self.send(client, 98, length: Self.short)
        #expect(disk.tried.withLock { $0.last } == UInt64(Self.short))
        other.socket.shutDown()
        while test.server.clients(of: "a") > 1 { await Task.yield() }
        try await Self.send(client, 99)
        #expect(Self.tries(disk) == 1)
        try await test.stop()
    }

    @Test("are none of a client that has sent another request behind it", arguments: EngineKind.allCases)
    func followed(kind: EngineKind) async throws {
        let (test, disk, client) = try await Self.start(kind)
        for turn in 0..<Self.many { try await Self.send(client, UInt8(turn)) }
        #expect(Self.tries(disk) > 0)
        try await client.send(
            RawClient.request(Self.write, cookie: 1, length: Self.length)
                + Array(repeating: 77, count: Int(Self.length)) + RawClient.request(Self.flush, cookie: 2))
        let cookies = [try await client.reply().cookie, try await client.reply().cookie]
        #expect(Set(cookies) == [1, 2])
        #expect(Self.tries(disk) == 0)
        // It has to show anew that it waits for each.
        try await Self.send(client, 78)
        #expect(Self.tries(disk) == 0)
        for turn in 0..<Self.many { try await Self.send(client, UInt8(turn)) }
        #expect(Self.tries(disk) > 0)
        try await test.stop()
    }

    @Test("are none of a client that sends many shorter ones at a time", arguments: EngineKind.allCases)
    func many(kind: EngineKind) async throws {
        let (test, disk, client) = try await Self.start(kind)
        var requests: [UInt8] = []
        for cookie in 0..<UInt64(Self.many) {
            requests += RawClient.request(Self.write, cookie: cookie, length: 128 << 10)
            requests += Array(repeating: 5, count: 128 << 10)
        }
        try await client.send(requests)
        for _ in 0..<Self.many { #expect(try await client.reply().error == 0) }
        try await Self.send(client, 6)
        #expect(Self.tries(disk) == 0)
        try await test.stop()
    }

    @Test("are none while another request is on its way", arguments: EngineKind.allCases)
    func beside(kind: EngineKind) async throws {
        let (test, disk, client) = try await Self.start(kind)
        for turn in 0..<Self.many { try await Self.send(client, UInt8(turn)) }
        #expect(Self.tries(disk) > 0)
        disk.hold()
        try await client.send(RawClient.request(Self.zero, cookie: 99, offset: 4 << 20, length: 4096))
        while disk.heldCount == 0 { await Task.yield() }
        for turn in 0..<Self.many { try await Self.send(client, UInt8(turn)) }
        #expect(Self.tries(disk) == 0)
        disk.release()
        #expect(try await client.reply().cookie == 99)
        for turn in 0..<Self.many { try await Self.send(client, UInt8(turn)) }
        #expect(Self.tries(disk) > 0)
        try await test.stop()
    }
}
