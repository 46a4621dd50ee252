internal import BlockIO
internal import Foundation
internal import Glibc
internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("Requests that are left to gather")
struct GatheringTests {
    private static let unit = 4096

    /// So many requests, reads of `length` bytes but for one where `hasWrite`.
    private static func batch(_ count: Int, length: Int = unit, hasWrite: Bool = false) throws
        -> Gathering.Batch
    {
        var batch = Gathering.Batch()
        for number in 0..<count {
            let type: UInt16 = hasWrite && number == 0 ? 1 : 0
            let header = RawClient.request(type, length: UInt32(length)).withUnsafeBytes { RequestHeader($0) }
            batch.add(try #require(header))
        }
        return batch
    }

    @Test("only of a client that has the replies to many short reads to fetch")
    func decision() throws {
        func moment(_ batch: Gathering.Batch, _ unfetched: Int) -> UInt64? {
            var gathering = Gathering()
            return gathering.moment(after: batch, unfetched: unfetched)
        }
        let unit = Self.unit
        #expect(moment(try Self.batch(1), 14 * unit) == nil)
        #expect(moment(try Self.batch(1), 16 * unit) == 2000)
        #expect(moment(try Self.batch(4), 34 * unit) == 20_000)
        // However much there is.
        #expect(moment(try Self.batch(11), 1 << 40) == 40_000)
        // What is long is so many fewer.
        #expect(moment(try Self.batch(1, length: 16 * unit), 16 * 15 * unit) == 1000)
        #expect(moment(try Self.batch(1, length: 16 * unit), 16 * 14 * unit) == nil)
        // Enough have gathered, or nothing is known: writes among them, replies of few bytes, no request at all.
        #expect(moment(try Self.batch(12), 64 * unit) == nil)
        #expect(moment(try Self.batch(4, length: 16 * unit, hasWrite: true), 1 << 30) == nil)
        #expect(moment(try Self.batch(8, length: 512), 64 * unit) == nil)
        #expect(moment(try Self.batch(0), 64 * unit) == nil)
    }

    @Test("where too few gather it is left out, twice as often each time")
    func feedback() throws {
        var gathering = Gathering()
        /// How many batches of one go by until it waits again, which brings one of `count`.
        func pause(bringing count: Int) throws -> Int {
            var passed = 0
            while gathering.moment(after: try Self.batch(1), unfetched: 1 << 20) == nil { passed += 1 }
            gathering.hasPaused()
            gathering.note(try Self.batch(count))
            return passed
        }
        #expect(try pause(bringing: 1) == 0)
        for power in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10] {
            #expect(try pause(bringing: 2) == 1 << power)
            // Those that no pause has brought say nothing.
            gathering.note(try Self.batch(1))
            gathering.note(try Self.batch(9))
        }
        #expect(try pause(bringing: 3) == 1 << 10)
        #expect(try pause(bringing: 1) == 0)
        #expect(try pause(bringing: 1) == 2)
    }

    @Test("what a peer has not fetched can be seen, of a Unix socket", arguments: [true, false])
    func unfetched(isUnix: Bool) async throws {
        var ends: [Int32] = [-1, -1]
        try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
        let (near, far) = (Socket(ends[0], isUnix: isUnix), Socket(ends[1]))
        #expect(near.unfetched == 0)
        let page = [UInt8](repeating: 1, count: 64 << 10)
        let count = write(near.descriptor, page, page.count)
        #expect(count == page.count)
        #expect(isUnix ? near.unfetched >= count : near.unfetched == 0)
        var fetched = [UInt8](repeating: 0, count: count)
        while !fetched.isEmpty { fetched.removeFirst(read(far.descriptor, &fetched, fetched.count)) }
        #expect(near.unfetched == 0)
    }

    /// It sends requests one by one and in bursts, and fetches replies now and then: each is answered, with what is there, whatever
    /// waits for what.
    @Test("all are answered, in whatever rhythm a client asks and fetches", arguments: EngineKind.allCases)
    func rhythm(kind: EngineKind) async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let test = try await ServerUnderTest.start(kind)
        let blocks = 256
        let content = (0..<blocks * 4096).map { UInt8(truncatingIfNeeded: $0 / 4096 &* 37 &+ $0) }
        let file = try await test.addFile("a", bytes: UInt64(content.count))
        try await test.engine.run {
            let buffer = IOBuffer(count: content.count)
            buffer.bytes.copyBytes(from: content)
            try await file.write(file.range, from: buffer.slice)
        }
        let client = try await RawClient.open(test.path, "a", structured: false)
        // The blocks by the cookies of their requests.
        var asked: [UInt64: Int] = [:]
        var next: UInt64 = 0
        for _ in 0..<400 {
            // No more than the server takes of one client, whose replies would not all fit into the socket else.
            let count = min(
                Bool.random(using: &random) ? 1 : Int.random(in: 1...20, using: &random), 90 - asked.count)
            var requests: [UInt8] = []
            for _ in 0..<count {
                let block = Int.random(in: 0..<blocks, using: &random)
                requests += RawClient.request(0, cookie: next, offset: UInt64(block * 4096), length: 4096)
                asked[next] = block
                next += 1
            }
            if !requests.isEmpty { try await client.send(requests) }
            guard asked.count >= 70 || Int.random(in: 0..<12, using: &random) == 0 else { continue }
            for _ in 0..<Int.random(in: 0...asked.count, using: &random) {
                let reply = try await client.reply(length: 4096)
                let block = try #require(asked[reply.cookie], "seed \(seed)")
                asked[reply.cookie] = nil
                #expect(reply.error == 0, "seed \(seed)")
                #expect(reply.payload == Array(content[block * 4096..<(block + 1) * 4096]), "seed \(seed)")
            }
        }
        // It leaves with replies that it has not fetched.
        try await client.send(RawClient.request(2))
        await client.waitForEnd()
        try await test.stop()
    }
}
