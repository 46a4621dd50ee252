internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("Requests that are left to gather")
struct GatheringTests {
    @Test("only of a client that has the replies to many short reads to fetch")
    func decision() {
        func moment(_ count: Int, _ asked: Int, _ unfetched: Int) -> UInt64? {
            Transmission.moment(after: count, asked: asked, unfetched: unfetched)
        }
        let unit = 4096
        #expect(moment(1, unit, 14 * unit) == nil)
        #expect(moment(1, unit, 16 * unit) == 1000)
        #expect(moment(4, 4 * unit, 34 * unit) == 10_000)
        // However much there is.
        #expect(moment(11, 11 * unit, 1 << 40) == 20_000)
        // What is long is so many fewer.
        #expect(moment(1, 16 * unit, 16 * 15 * unit) == 500)
        #expect(moment(1, 16 * unit, 16 * 14 * unit) == nil)
        // Enough have gathered, or nothing is known: writes among them, replies of few bytes, no request at all.
        #expect(moment(12, 12 * unit, 64 * unit) == nil)
        #expect(moment(4, 3 * unit, 64 * unit) == nil)
        #expect(moment(8, 8 * 512, 64 * unit) == nil)
        #expect(moment(0, 0, 64 * unit) == nil)
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
