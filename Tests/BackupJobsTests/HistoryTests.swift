internal import BackupJobs
internal import BlockIO
internal import Synchronization
internal import TestKit
internal import Testing

@Suite struct HistoryTests {
    @Test("whatever happens, a target holds what its job says it holds")
    func histories() {
        let first = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(first)")
        for seed in first..<first + UInt64(testRounds(1000)) {
            let history = History(seed: seed)
            let found = Mutex<[String]>([])
            let isDone = history.engine.drive {
                let result = await history.play()
                found.withLock { $0 = result }
            }
            #expect(isDone, "seed \(seed): the job got stuck (\(history.trouble))")
            #expect(found.withLock { $0 } == [], "seed \(seed): \(history.trouble), \(history.options)")
            if !isDone || found.withLock({ !$0.isEmpty }) { return }
        }
    }

    @Test("jobs that share two buffers all come to their ends")
    func manyJobs() {
        let first = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(first)")
        for seed in first..<first + UInt64(testRounds(1000) / 10) {
            let engine = SimEngine(seed: seed)
            let pool = BufferPool(capacity: 2 << 16, bufferSize: 1 << 16)
            let histories = (0..<4).map { History(seed: seed &* 31 &+ $0, engine: engine, pool: pool) }
            let found = Mutex<[String]>([])
            let isDone = engine.drive {
                await withTaskGroup { group in
                    for history in histories where history.trouble != .targetHangs {
                        group.addTask { await history.play() }
                    }
                    for await result in group { found.withLock { $0 += result } }
                }
            }
            #expect(isDone, "seed \(seed): the jobs got stuck")
            #expect(found.withLock { $0 } == [], "seed \(seed)")
            if !isDone { return }
        }
    }
}
