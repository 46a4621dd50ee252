internal import BlockIO
internal import Glibc
internal import Synchronization
internal import TestKit
internal import Testing

@testable internal import BackupJobs

@Suite struct StagingTests {
    @Test("staging holds what was saved until it is forgotten, over kills, and takes no space afterwards")
    func histories() throws {
        let first = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(first)")
        let directory = try TemporaryDirectory()
        var (onFile, kills) = (0, 0)
        let count = UInt64(testRounds(2000))
        for seed in first..<first + count {
            let history = StagingHistory(seed: seed, directory: directory.path)
            let found = history.play()
            #expect(found == [], "seed \(seed) (history \(seed - first + 1)): \(history.shape)")
            if !found.isEmpty { return }
            let state = history.state.withLock { $0 }
            onFile += state.readsOfFile > 0 ? 1 : 0
            kills += state.kills
        }
        // Histories that never come there would say nothing about it.
        if count >= 1000 { #expect(onFile > count / 4 && kills > count / 4, "\(onFile), \(kills)") }
    }
}

/// Savers, readers and those who give back, on one staging file, over several lives of an agent.
private final class StagingHistory: Sendable {
    enum Block: Hashable {
        case none
        /// Somebody is saving it, or giving it back.
        case changing
        case held(UInt32)
    }

    struct State {
        var blocks: [Block]
        var readers: [Int]
        var value: UInt32 = 0
        var operations = 0
        var readsOfFile = 0
        var kills = 0
        var complaints: [String] = []
    }

    private static let blockCount = 40
    private static let operationCount = 250

    let shape: StagingLog.Shape
    let state = Mutex(
        State(
            blocks: Array(repeating: .none, count: blockCount),
            readers: Array(repeating: 0, count: blockCount)))
    private let seed: UInt64
    private let size: UInt64
    private let limit: UInt64?
    private let isFaulty: Bool
    private let recordPath: String
    private let disk: DiskContent
    private let log: LogContent
    private let pieces = PiecesInFlight()

    init(seed: UInt64, directory: String) {
        var chance = Chance(seed: seed)
        self.seed = seed
        recordPath = "\(directory)/record-\(seed)"
        size = UInt64(Self.blockCount) * 4096 - (chance.oneIn(3) ? 1024 : 0)
        shape = StagingLog.Shape(
            blocksPerSegment: chance.pick([1, 2, 3, 5]), buffers: chance.pick([1, 2, 3, 6]),
            segments: chance.pick([2, 4, 8, 30]))
        log = LogContent(shape)
        limit = chance.oneIn(4) ? UInt64(20 + chance.below(60)) * 4096 : nil
        isFaulty = chance.oneIn(4)
        disk = DiskContent(
            size: UInt64(Self.blockCount) * 4096, values: Array(repeating: 0, count: Self.blockCount * 8),
            backing: nil)
    }

    func play() -> [String] {
        var chance = Chance(seed: seed &* 31)
        let lives = 1 + chance.below(3)
        for life in 1...lives {
            let sim = SimEngine(seed: seed &* 31 &+ UInt64(life), limit: .seconds(3600))
            let time = life < lives ? Duration.microseconds(500 + chance.below(40_000)) : nil
            let isDone = sim.drive { [self] in
                let killer = Task(executorPreference: sim) {
                    guard let time else { return }
                    await sim.pass(time, cancellable: true)
                    if !Task.isCancelled { sim.stop() }
                }
                await live(sim, isFirst: life == 1)
                killer.cancel()
            }
            if isDone || state.withLock({ !$0.complaints.isEmpty }) { break }
            if time == nil { complain("it got stuck") }
            state.withLock { $0.kills += 1 }
            pieces.kill(&chance)
        }
        unlink(recordPath)
        return state.withLock { $0.complaints }
    }

    private func complain(_ text: String) { state.withLock { $0.complaints.append(text) } }

    private func live(_ sim: SimEngine, isFirst: Bool) async {
        do throws(BlockError) {
            let record =
                try isFirst
                ? JobRecord.create(
                    at: recordPath, driveSize: size, clusterSize: 65536, log: shape, engine: sim)
                : JobRecord.open(recordPath, engine: sim)
            let blocks = LiveDisk(disk, sim, pieces, name: "staging", slowness: 20, isStaging: true)
            let staging = Staging(
                on: LiveStaging(blocks, log: log, isFaulty: isFaulty), limit: limit)
            staging.use(record.log, driveSize: size)
            if !isFirst { try await recover(staging) }
            let agent = Agent(sim: sim, staging: staging, log: record.log)
            await withTaskGroup { group in
                for _ in 0..<3 { group.addTask { await self.save(agent) } }
                for _ in 0..<2 { group.addTask { await self.read(agent) } }
                group.addTask { await self.giveBack(agent) }
                group.addTask { await self.send(agent) }
            }
            for block in 0..<Self.blockCount { await forget(block..<block + 1, staging) }
            if staging.usage.used != 0 || !staging.isEmpty || record.log.held != 0 {
                complain("\(staging.usage.used) bytes are in use in the end, \(record.log.held) in the log")
            }
            if (0..<Self.blockCount * 8).contains(where: { disk.value($0) != 0 })
                || log.bytes.withLock({ $0.contains { $0 != 0 } })
            {
                complain("the file is not empty in the end")
            }
        } catch { complain("\(error)") }
    }

    private struct Agent: Sendable {
        let sim: SimEngine
        let staging: Staging
        let log: StagingLog
    }

    /// What was being changed at the kill is given back.
    private func recover(_ staging: Staging) async throws(BlockError) {
        try await staging.recount()
        for block in 0..<Self.blockCount {
            let isHeld = state.withLock { state in
                state.readers[block] = 0
                if case .held = state.blocks[block] { return true }
                state.blocks[block] = .changing
                return false
            }
            if isHeld { continue }
            await forget(block..<block + 1, staging)
            state.withLock { $0.blocks[block] = .none }
        }
    }

    private func forget(_ blocks: Range<Int>, _ staging: Staging) async {
        let range = ByteRange(
            offset: UInt64(blocks.lowerBound) * 4096, length: UInt64(blocks.count) * 4096)
        if staging.forget(range) { await staging.punch(range) }
        while await staging.punchLog() {}
    }

    private func bytes(_ blocks: Range<Int>) -> ByteRange {
        ByteRange(UInt64(blocks.lowerBound) * 4096..<min(size, UInt64(blocks.upperBound) * 4096))
    }

    /// False when all has been done.
    private func goOn(_ sim: SimEngine) async -> Bool {
        await sim.pass(.microseconds(sim.random { $0.oneIn(3) ? 0 : $0.below(400) }))
        return state.withLock { state in
            state.operations += 1
            return state.operations < Self.operationCount && state.complaints.isEmpty
        }
    }

    /// A run of blocks that are all as asked for, if it was lucky.
    private func pick(_ sim: SimEngine, _ isRight: (Block, Int) -> Bool) -> Range<Int>? {
        let first = sim.random { $0.below(Self.blockCount) }
        let end = min(Self.blockCount, first + sim.random { $0.pick([1, 1, 2, 4, 6]) })
        return state.withLock { state in
            let right = (first..<end).prefix { isRight(state.blocks[$0], state.readers[$0]) }
            return right.isEmpty ? nil : first..<first + right.count
        }
    }

    private func save(_ agent: Agent) async {
        while await goOn(agent.sim) {
            guard let blocks = pick(agent.sim, { block, _ in block == .none }) else { continue }
            let zero = agent.sim.random { $0.oneIn(8) }
            let value = state.withLock { state in
                for block in blocks { state.blocks[block] = .changing }
                state.value += 1
                return zero ? 0 : state.value
            }
            let range = bytes(blocks)
            let buffer = IOBuffer(count: Int(range.length))
            for start in stride(from: 0, to: buffer.count, by: 512) {
                let unit = blocks.lowerBound * 8 + start / 512
                DiskContent.fill(buffer[start..<start + 512].bytes, value, unit: unit)
            }
            let isSaved = await save(range, buffer.slice, agent)
            if !isSaved { await forget(blocks, agent.staging) }
            state.withLock { state in
                for block in blocks { state.blocks[block] = isSaved ? .held(value) : .none }
            }
        }
    }

    private func save(_ range: ByteRange, _ buffer: IOSlice, _ agent: Agent) async -> Bool {
        guard agent.sim.random({ $0.oneIn(2) }) else {
            return agent.staging.saveAtOnce(range, from: buffer)
        }
        let promised = range.length.roundedUp(toMultipleOf: 4096)
        guard agent.staging.room >= promised else { return false }
        agent.staging.promise(promised)
        defer { agent.staging.giveBack(promised) }
        return (try? await agent.staging.save(range, from: buffer)) != nil
    }

    private func read(_ agent: Agent) async {
        while await goOn(agent.sim) {
            let found = pick(agent.sim) { block, _ in if case .held = block { true } else { false } }
            guard let blocks = found else { continue }
            state.withLock { state in
                for block in blocks {
                    state.readers[block] += 1
                    if case .file = agent.log.place(of: block) { state.readsOfFile += 1 }
                }
            }
            var range = bytes(blocks)
            if agent.sim.random({ $0.oneIn(3) }) { range = range.dropFirst(512) }
            let buffer = IOBuffer(count: Int(range.length))
            do throws(BlockError) { try await agent.staging.read(range, into: buffer.slice) } catch {
                complain("\(error)")
            }
            state.withLock { state in
                for start in stride(from: 0, to: buffer.count, by: 512) {
                    let unit = Int(range.offset) / 512 + start / 512
                    let value = DiskContent.value(
                        UnsafeRawBufferPointer(buffer[start..<start + 512].bytes), unit: unit)
                    if state.blocks[unit / 8] != value.map(Block.held) {
                        state.complaints.append(
                            "unit \(unit) reads as \(value.map(String.init) ?? "nothing known"), not "
                                + "\(state.blocks[unit / 8])")
                    }
                }
                for block in blocks { state.readers[block] -= 1 }
            }
        }
    }

    private func giveBack(_ agent: Agent) async {
        while await goOn(agent.sim) {
            let found = pick(agent.sim) { block, readers in
                if case .held = block { readers == 0 } else { false }
            }
            guard let blocks = found else { continue }
            state.withLock { state in for block in blocks { state.blocks[block] = .changing } }
            await forget(blocks, agent.staging)
            state.withLock { state in for block in blocks { state.blocks[block] = .none } }
        }
    }

    private func send(_ agent: Agent) async {
        while await goOn(agent.sim) {
            guard agent.staging.shouldSendOn else { continue }
            // What could not be sent is where it was.
            while (try? await agent.staging.sendNext(isReadSoon: agent.sim.random { $0.oneIn(2) })) == true {}
        }
    }
}
