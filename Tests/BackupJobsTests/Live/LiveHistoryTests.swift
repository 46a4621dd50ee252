internal import BlockIO
internal import Synchronization
internal import TestKit
internal import Testing

@Suite struct LiveHistoryTests {
    /// How many histories one run of the tests plays.
    static var count: UInt64 { UInt64(testRounds(3000)) }

    @Test(
        "whatever guests do while a backup runs, the target is the drive at one instant, and the drive is the guests'"
    )
    func histories() throws {
        let first = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(first)")
        let directory = try TemporaryDirectory()
        var (resumed, incomplete, lossy, cloned, digested) = (0, 0, 0, 0, 0)
        for seed in first..<first + Self.count {
            let history = LiveHistory(seed: seed, directory: directory.path)
            let found = history.play()
            #expect(
                found == [],
                "seed \(seed) (history \(seed - first + 1)): \(history.options), \(history.state.withLock { $0.wasKilled }) kills"
            )
            if !found.isEmpty { return }
            let state = history.state.withLock { $0 }
            if state.outcome == .some(nil) {
                if state.resumes > 0 { resumed += 1 }
                if !state.missing.isEmpty { incomplete += 1 }
                if state.isCloned { cloned += 1 }
                if state.digestsCompared > 0, state.wasKilled > 0 { digested += 1 }
                if !state.leftOut.isEmpty, history.targetFault != nil { lossy += 1 }
            }
        }
        // Histories that never come there would say nothing about it.
        if Self.count >= 1000 {
            #expect(
                resumed > 10 && incomplete > 10 && lossy > 10 && cloned > 50 && digested > 50,
                "\(resumed), \(incomplete), \(lossy), \(cloned), \(digested)")
        }
    }
}
