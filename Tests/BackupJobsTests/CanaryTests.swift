internal import Glibc
internal import TestKit
internal import Testing

/// What must fail when it is asked for: whoever runs random tests proves with it that failures are seen, and come again
/// with their seeds.
@Suite struct CanaryTests {
    @Test("the canary dies", .enabled(if: getenv("DRIVE_BACKUP_CANARY") != nil))
    func dies() {
        let first = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(first)")
        let rounds = UInt64(max(1, testRounds(100)))
        var chance = Chance(seed: first)
        let seed = first + chance.below(rounds)
        Issue.record("seed \(seed) (history \(seed - first + 1)): the canary is dead, as it has to be")
    }
}
