internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("Clients beside each other")
struct FairnessTests {
    @Test("a device that describes little at a time is not asked on and on", arguments: EngineKind.allCases)
    func turnsOfBlockStatus(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        let disk = Checkered(engine: test.engine)
        try test.server.add(NBDExport(name: "a", device: disk, isReadOnly: true))
        let client = try await RawClient.open(test.path)
        // One below and one above the middle, sent together.
        try await client.send(
            RawClient.request(7, cookie: 1, offset: 0, length: 1 << 20)
                + RawClient.request(7, cookie: 2, offset: 32 << 20, length: 1 << 20))
        for _ in 0..<2 {
            let chunk = try await client.reply()
            #expect(chunk.type == .blockStatus && chunk.isLast)
            // A short answer has an extent at least, behind the context's number.
            #expect(chunk.payload.count >= 12)
        }
        let asked = disk.asked.value
        let low = asked.indices.filter { asked[$0] < 32 << 20 }
        let high = asked.indices.filter { asked[$0] >= 32 << 20 }
        #expect((1...8).contains(low.count) && (1...8).contains(high.count))
        // Neither has all its turns at once.
        #expect(low.count == 1 || low != Array(low[0]..<low[0] + low.count))
        try await test.stop()
    }

    @Test("the longest requests have their turns among forty busy clients", arguments: EngineKind.allCases)
    func turnsOfLongRequests(kind: EngineKind) async throws {
        var limits = NBDLimits.patient
        // So small that the busy ones could do with all of it.
        limits.memory = RequestMemory(capacity: 8 << 20)
        let test = try await ServerUnderTest.start(kind, limits: limits)
        let disk = try test.addDisk("a", bytes: 4 << 20)
        disk.hold()
        var busy: [RawClient] = []
        let request = RawClient.request(0, length: 64 << 10)
        for _ in 0..<40 {
            let client = try await RawClient.open(test.path, structured: false)
            try await client.send((0..<16).flatMap { _ in request })
            busy.append(client)
        }
        while limits.memory.waiting < 40 { await Task.yield() }
        let long = try await RawClient.open(test.path)
        try await long.send(RawClient.request(0, length: 2 << 20))
        while limits.memory.waiting < 41 { await Task.yield() }
        let isOver = Locked(false)
        let tasks = busy.map { client in
            Task {
                while !isOver.value {
                    _ = try await client.reply(length: 64 << 10)
                    try await client.send(request)
                }
                for _ in 0..<16 { _ = try await client.reply(length: 64 << 10) }
            }
        }
        disk.release()
        #expect(try await long.reply().error == 0)
        for _ in 0..<5 { #expect(try await long.ask(0, length: 2 << 20).error == 0) }
        isOver.withLock { $0 = true }
        for task in tasks { try await task.value }
        try await test.stop()
        #expect(limits.memory.used == 0)
    }
}

/// A disk whose every other block is a hole, which describes one block at a time and never waits.
private final class Checkered: BlockDevice {
    static let block: UInt64 = 4096

    let engine: any IOEngine
    let name = "checkered"
    let size: UInt64 = 64 << 20
    let isReadOnly = true
    let limits = BlockLimits()
    /// The offsets of which it was asked.
    let asked = Locked<[UInt64]>([])

    init(engine: any IOEngine) { self.engine = engine }

    func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        asked.withLock { $0.append(range.offset) }
        let isZero = range.offset / Self.block % 2 == 1
        return [Extent(range.prefix(Self.block), isZero: isZero, isAllocated: !isZero)]
    }

    func read(_: ByteRange, into _: IOSlice) async throws(BlockError) { throw refusal }
    func write(_: ByteRange, from _: IOSlice) async throws(BlockError) { throw refusal }
    func writeZeroes(_: ByteRange, mayUnmap _: Bool) async throws(BlockError) { throw refusal }
    func discard(_: ByteRange) async throws(BlockError) { throw refusal }
    func flush() async throws(BlockError) {}
    func close() async throws(BlockError) {}

    private var refusal: BlockError { BlockError(.unsupported, "\(name) is only described") }
}
