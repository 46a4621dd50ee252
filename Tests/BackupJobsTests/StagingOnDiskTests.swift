internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import BackupJobs

@Suite("Staging on a disk")
struct StagingOnDiskTests {
    private static let count = 4000
    private static let driveSize = UInt64(count) * JobRecord.blockSize

    /// Segments of several writes to the page cache, and of one past it; what was forgotten and given back meanwhile is written
    /// again, either way.
    @Test(
        "the log reads as it was saved, whether the page cache has it or not", arguments: EngineKind.allCases)
    func log(kind: EngineKind) async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let directory = try TemporaryDirectory()
        let engine = try kind.makeEngine(name: "staging")
        let shape = StagingLog.Shape(blocksPerSegment: 50, buffers: 4, segments: 40)
        let record = try MappedFile.create(
            directory.file("record"), length: shape.recordLength, allocated: 0)
        let orders = (0..<3).map { _ in Array((0..<Self.count).shuffled(using: &random).prefix(1500)) }
        let result: Result<Void, any Error> = await engine.run {
            do {
                try await Self.play(engine, directory, record, shape, orders, seed)
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        await engine.shutDown()
        try result.get()
    }

    private static func play(
        _ engine: any IOEngine, _ directory: TemporaryDirectory, _ record: MappedFile,
        _ shape: StagingLog.Shape, _ orders: [[Int]], _ seed: UInt64
    ) async throws {
        // What `create` finds free is for all stagings of this process, which are many here.
        let file = try await HostFile.create(directory.file("staging"), on: engine)
        try await file.changeLock(holding: .all, unsharing: .all)
        try await file.setSize(driveSize + shape.fileLength)
        await file.bypassCache(always: false)
        #expect(file.canWritePastCache || engine is ThreadsEngine || !temporaryFilesTakeDirectTransfers)
        let staging = Staging(on: file)
        let log = StagingLog(record, at: 0, shape: shape, space: [], engine: engine)
        #expect(staging.use(log, driveSize: driveSize))
        let (buffer, found) = (IOBuffer(count: 4096), IOBuffer(count: 4096))
        var random = SeededGenerator(seed &+ 1)
        for (life, order) in orders.enumerated() {
            for (index, block) in order.enumerated() {
                Self.fill(buffer, block, life)
                let range = ByteRange(offset: UInt64(block) * 4096, length: 4096)
                #expect(
                    staging.saveInLog(range) { memory in
                        memory.bytes.copyMemory(from: UnsafeRawBufferPointer(buffer.slice.bytes))
                        return true
                    } == true, "seed \(seed): block \(block) is in the log")
                while staging.shouldSendOn {
                    let isReadSoon = Bool.random(using: &random)
                    guard try await staging.sendNext(isReadSoon: isReadSoon) else { break }
                }
                guard index % 7 == 6 else { continue }
                let back = order[index / 2]
                Self.fill(buffer, back, life)
                let place = ByteRange(offset: UInt64(back) * 4096, length: 4096)
                try await staging.read(place, into: found.slice)
                #expect(
                    Array(found.slice.bytes) == Array(buffer.slice.bytes), "seed \(seed): block \(back)")
            }
            for block in order {
                Self.fill(buffer, block, life)
                let range = ByteRange(offset: UInt64(block) * 4096, length: 4096)
                try await staging.read(range, into: found.slice)
                #expect(
                    Array(found.slice.bytes) == Array(buffer.slice.bytes), "seed \(seed): block \(block)")
                _ = staging.forget(range)
            }
            while await staging.punchLog() {}
        }
        try await staging.remove()
    }

    private static func fill(_ buffer: IOBuffer, _ block: Int, _ life: Int) {
        let words = buffer.slice.bytes.bindMemory(to: UInt64.self)
        for index in words.indices {
            words[index] = UInt64(block * 1000 + life * 7 + 1) &+ UInt64(index) << 32
        }
    }
}
