internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import NBD

/// A disk that notes which writes it was to do at once, and holds zeroes when it is told to.
private final class NotingDisk: BlockDevice {
    let disk: SimDisk
    let tried = Locked<[UInt64]>([])
    private let held = Locked<(isHolding: Bool, waiting: [CheckedContinuation<Void, Never>])>((false, []))

    init(_ disk: SimDisk) { self.disk = disk }

    var name: String { disk.name }
    var engine: any IOEngine { disk.engine }
    var size: UInt64 { disk.size }
    var isReadOnly: Bool { disk.isReadOnly }
    var limits: BlockLimits { disk.limits }

    /// It never does: then the write is done in another way, and nothing of it is lost or done twice.
    func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        tried.withLock { $0.append(range.length) }
        return false
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

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try await disk.read(range, into: buffer)
    }
    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await disk.write(range, from: buffer)
    }
    func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        if held.value.isHolding {
            await withCheckedContinuation { continuation in
                held.withLock { $0.waiting.append(continuation) }
            }
        }
        try await disk.writeZeroes(range, mayUnmap: mayUnmap)
    }
    func discard(_ range: ByteRange) async throws(BlockError) { try await disk.discard(range) }
    func flush() async throws(BlockError) { try await disk.flush() }
    func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        try await disk.extents(in: range)
    }
    func close() async throws(BlockError) { try await disk.close() }
}

@Suite("Long writes in the step in which they come")
struct LongWriteTests {
    private static let write: UInt16 = 1, flush: UInt16 = 3, zero: UInt16 = 6, fua: UInt16 = 1
    private static let length: UInt32 = 100 << 10
    /// More than it takes until a client counts as one that has one request on its way.
    private static let many = 20

    private static func start(_ kind: EngineKind) async throws -> (ServerUnderTest, NotingDisk, RawClient) {
        let test = try await ServerUnderTest.start(kind)
        let disk = NotingDisk(SimDisk(size: 8 << 20, engine: test.engine, name: "long"))
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
            return tried.filter { $0 > 64 << 10 }.count
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
        #expect(disk.disk.contents(of: ByteRange(0..<UInt64(Self.length))).allSatisfy { $0 == 53 })
        #expect(
            disk.disk.contents(of: ByteRange(UInt64(Self.length)..<(1 << 20) + 512)).allSatisfy { $0 == 51 })
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
