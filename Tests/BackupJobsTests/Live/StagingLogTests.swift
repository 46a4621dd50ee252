internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import BackupJobs

/// An expectation that fails looks into what it names, and traps where that has something that cannot be copied.
extension StagingLog: CustomReflectable {
    public var customMirror: Mirror { Mirror(self, children: []) }
}

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

    @Test("has in its index what a dictionary has, however many blocks want the same place")
    func index() {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        for round in 0..<40 {
            var index = SlotIndex()
            var model: [Int: Int] = [:]
            // Few tables and few blocks meet often; `spread` apart they are all over a table, or in a row.
            let (tables, keys) = (1 << Int.random(in: 0...4, using: &random), 1 << (round % 12))
            let spread = UInt32(1) << UInt32.random(in: 0...18, using: &random)
            let additions = Int.random(in: 1...9, using: &random)
            for turn in 0..<4000 {
                let key = UInt32.random(in: 0..<UInt32(keys), using: &random) * spread
                let block = SlotIndex.Name(table: Int.random(in: 0..<tables, using: &random), key: key).block
                switch Int.random(in: 0..<10, using: &random) {
                case ..<additions:
                    let isNew = model[block] == nil
                    if isNew { model[block] = turn }
                    index.fetch(block)
                    let isAdded = index.add(block, in: turn)
                    #expect(isAdded == isNew, "seed \(seed), round \(round)")
                default:
                    let slot = index.remove(block)
                    #expect(slot == model.removeValue(forKey: block), "seed \(seed), round \(round)")
                }
                let count = index.count
                #expect(count == model.count, "seed \(seed), round \(round)")
            }
            let blocks = index.blocks
            #expect(blocks.sorted() == model.keys.sorted(), "seed \(seed), round \(round)")
            for (block, slot) in model {
                let found = index[block]
                #expect(found == slot, "seed \(seed), round \(round)")
            }
        }
        var index = SlotIndex()
        let last = SlotIndex.Name.most - 1
        let isAdded = index.add(last, in: Int(UInt32.max))
        let (found, other, removed) = (index[last], index[0], index.remove(0))
        #expect(isAdded)
        #expect(found == Int(UInt32.max))
        #expect(other == nil && removed == nil)
    }

    @Test("finds blocks at regular distances after a few looks, however many there are")
    func distances() {
        for distance in [1, 2, 3, 16, 1000, 1023, 1024, 1025, 4096, 1 << 15, 1 << 18, 1 << 20, (1 << 20) + 1]
        {
            var index = SlotIndex()
            for number in 0..<96 * SlotIndex.tables { _ = index.add(number * distance, in: number) }
            let mean = index.meanDistance
            // Of three quarters, the most that are full, one and a half would be the average.
            #expect(mean < 3, "at distances of \(distance) blocks")
        }
    }

    /// That of the drive whose staging it is, in bytes.
    private static let size: UInt64 = 4 << 20

    /// A small log, and an empty record that is nothing else; its file is gone.
    private static func record(
        blocksPerSegment: Int
    ) throws -> (shape: StagingLog.Shape, record: MappedFile) {
        let directory = try TemporaryDirectory()
        let shape = StagingLog.Shape(blocksPerSegment: blocksPerSegment, buffers: 4, segments: 8)
        let record = try MappedFile.create(
            directory.file("record"), length: shape.recordLength, allocated: shape.recordLength)
        return (shape, record)
    }

    private static func staging(
        with log: StagingLog, limit: UInt64? = nil, engine: SimEngine
    ) -> Staging {
        let staging = Staging(on: SimDisk(size: size + log.shape.fileLength, engine: engine), limit: limit)
        staging.use(log, driveSize: size)
        return staging
    }

    @Test("finds what has come before it is in the index, and keeps the first where a block comes twice")
    func settling() throws {
        let (shape, record) = try Self.record(blocksPerSegment: 200)
        let sim = SimEngine(seed: 1, limit: .seconds(60))
        let isDone = sim.drive {
            func successor() -> StagingLog {
                StagingLog(record, at: 0, shape: shape, space: [0..<record.length], engine: sim)
            }
            let log = successor()
            func save(_ blocks: Range<Int>, _ content: UInt8) {
                guard let memory = log.room(for: blocks.count, upTo: { .max }) else {
                    Issue.record("there is room for blocks \(blocks)")
                    return
                }
                memory.bytes.initializeMemory(as: UInt8.self, repeating: content)
                log.take(blocks)
            }
            func content(of block: Int) -> UInt8? {
                guard case .memory(let slice) = log.place(of: block) else { return nil }
                return slice.bytes.first
            }
            save(7..<10, 1)
            save(9..<11, 2)
            for (block, expected) in [(7, 1), (9, 1), (10, 2)] as [(Int, UInt8)] {
                #expect(content(of: block) == expected)
            }
            #expect(Set(log.blocks) == [7, 8, 9, 10])
            var new: [Int] = []
            log.settle { new.append($0) }
            #expect(new == [7, 8, 9, 10])
            #expect(log.held == 4)
            #expect(record.load(at: 4096 + 3 * 8) == 0, "the second place of block 9")
            #expect(content(of: 9) == 1)
            save(8..<9, 3)
            #expect(log.blocks.count == 4)
            // A killed agent's successor has the first place, and its successor no other.
            let (second, third) = (successor(), successor())
            #expect(second.held == 4 && third.held == 4)
            #expect(record.load(at: 4096 + 5 * 8) == 0)
            new = []
            log.settle { new.append($0) }
            #expect(new.isEmpty)
            #expect(content(of: 8) == 1)
            #expect(!log.shouldSettle)
            for block in 100..<164 { save(block..<block + 1, 4) }
            #expect(log.shouldSettle)
            log.settle { _ in }
            let next = successor()
            #expect(next.blocks.sorted() == log.blocks.sorted())
            for block in log.blocks { log.forget(block) }
            #expect(log.held == 0 && successor().held == 0)
        }
        #expect(isDone)
    }

    @Test("is not left to take more and more while nothing is looked for")
    func settlingByItself() throws {
        let (shape, record) = try Self.record(blocksPerSegment: 128)
        let sim = SimEngine(seed: 1, limit: .seconds(60))
        let isDone = sim.drive {
            let log = StagingLog(record, at: 0, shape: shape, space: [0..<record.length], engine: sim)
            let staging = Self.staging(with: log, engine: sim)
            for block in 0..<UInt64(300) {
                let range = ByteRange(offset: block * 4096, length: 4096)
                let isSaved = staging.saveInLog(range) { memory in
                    memory.bytes.initializeMemory(as: UInt8.self, repeating: 1)
                    return true
                }
                #expect(isSaved == true)
                #expect(!log.shouldSettle)
            }
            #expect(staging.held(in: ByteRange(offset: 0, length: Self.size)) == 300 * 4096)
            #expect(staging.usage.used == 3 * shape.segmentLength)
        }
        #expect(isDone)
    }

    @Test("takes blocks that come together, over the end of a segment, without those that cannot be read")
    func together() throws {
        let (shape, record) = try Self.record(blocksPerSegment: 4)
        let sim = SimEngine(seed: 1, limit: .seconds(60))
        let isDone = sim.drive {
            let log = StagingLog(record, at: 0, shape: shape, space: [0..<record.length], engine: sim)
            let staging = Self.staging(with: log, engine: sim)
            /// Block 20 is zero, 30 cannot be read.
            func save(_ blocks: [Int], _ staging: Staging) -> [Int] {
                staging.saveSingly(blocks) { block, memory in
                    #expect(memory.count == 4096)
                    memory.bytes.initializeMemory(as: UInt8.self, repeating: block == 20 ? 0 : UInt8(block))
                    return block != 30
                }
            }
            func content(of block: Int) -> UInt8? {
                guard case .memory(let slice) = log.place(of: block) else { return nil }
                return slice.bytes.allSatisfy { $0 == slice.bytes[0] } ? slice.bytes[0] : nil
            }
            #expect(save([], staging) == [] && staging.usage.used == 0)
            #expect(save([9, 20, 3, 11, 9, 5, 20, 30, 7, 1], staging) == [9, 20, 3, 11, 5, 7, 1])
            #expect(save([12, 30, 14], staging) == [12, 14])
            let held = [9, 3, 11, 5, 7, 1, 12, 14]
            for block in held { #expect(content(of: block) == UInt8(block)) }
            #expect(log.held == held.count && Set(log.blocks) == Set(held))
            // Two segments, whole.
            #expect(staging.usage.used == 2 * shape.segmentLength)
            #expect(staging.held(in: ByteRange(offset: 0, length: Self.size)) == 8 * 4096)
            // A quarter of the limit is the log's; else memory is its bound.
            let small = Self.staging(with: log, limit: 12 * shape.segmentLength, engine: sim)
            #expect(save(Array(100..<110), small) == Array(100..<104))
            #expect(save(Array(110..<130), staging) == Array(110..<114))
            #expect(save([201], staging) == [])
        }
        #expect(isDone)
    }

    @Test("takes words that mean nothing for nothing")
    func garbage() throws {
        let (shape, record) = try Self.record(blocksPerSegment: 2)
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
