internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import BackupJobs

@Suite("The log of staging")
struct StagingLogTests {
    @Test("names blocks of drives of any size, and those at regular distances do not crowd in one table")
    func names() {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        for turn in 0..<20_000 {
            let bits = turn % 40
            let block = Int.random(in: 0...1 << bits, using: &random)
            let name = SlotIndex.Name(block)
            #expect((0..<SlotIndex.tables).contains(name.table), "seed \(seed)")
            #expect(SlotIndex.Name(table: name.table, key: name.key).block == block, "seed \(seed)")
        }
        #expect(
            SlotIndex.Name(table: SlotIndex.Name(SlotIndex.Name.most).table, key: 1 << 30).block == 1 << 40
        )
        // A thousand tables, eight times as many blocks.
        let count = 8 * SlotIndex.tables
        for distance in [1, 2, 3, 16, 1000, 1023, 1024, 1025, 4096, 1 << 18, 1 << 20, (1 << 20) + 1, 1 << 26]
        {
            var held = Array(repeating: 0, count: SlotIndex.tables)
            for number in 0..<count { held[SlotIndex.Name(number * distance).table] += 1 }
            #expect(held.max() ?? 0 <= 64, "at distances of \(distance) blocks")
        }
    }

    @Test("takes words that mean nothing for nothing")
    func garbage() throws {
        let directory = try TemporaryDirectory()
        let shape = StagingLog.Shape(blocksPerSegment: 2, buffers: 4, segments: 8)
        let record = try MappedFile.create(
            directory.file("record"), length: shape.recordLength, allocated: shape.recordLength)
        // Holders: of none, of a segment that has nothing, of one that holds something, and of the same again.
        let holders: [UInt64] = [.max, 7, 3, 3]
        for (buffer, word) in holders.enumerated() { record.store(word, at: buffer * 8) }
        let table = 4096
        let words: [UInt64] = [.max, 1 << 63, (1 << 40) + 1, 0, 6, 0]
        for (slot, word) in words.enumerated() {
            record.store(word, at: table + slot * 8)
        }
        let sim = SimEngine(seed: 1, limit: .seconds(60))
        let isDone = sim.drive {
            let log = StagingLog(record, at: 0, shape: shape, space: [0..<record.length], engine: sim)
            #expect(log.blocks == [5])
            #expect(log.held == 1)
            guard case .memory = log.place(of: 5) else {
                Issue.record("what the third buffer has is in memory")
                return
            }
            log.forget(5)
            #expect(log.blocks == [])
            // All segments and all buffers are to be had.
            for block in 0..<8 {
                guard let memory = log.room(for: 1, upTo: { .max }) else {
                    Issue.record("there is room for block \(block)")
                    return
                }
                #expect(memory.count == 4096)
                log.take(block..<block + 1)
            }
            #expect(log.held == 8)
        }
        #expect(isDone)
    }
}
