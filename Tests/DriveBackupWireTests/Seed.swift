internal import Foundation

/// SplitMix64: good enough to shake a test, and the same everywhere for a seed.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    mutating func below(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &self) }

    mutating func oneIn(_ count: Int) -> Bool { below(count) == 0 }

    mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8.random(in: 0...255, using: &self) }
    }
}

/// DRIVE_BACKUP_SEED, else a new seed; it is printed, so that a failure can be had again.
func testSeed(_ test: String = #function) -> UInt64 {
    let given = ProcessInfo.processInfo.environment["DRIVE_BACKUP_SEED"].flatMap { UInt64($0) }
    let seed = given ?? UInt64.random(in: 0...UInt64.max)
    print("\(test): DRIVE_BACKUP_SEED=\(seed)")
    return seed
}

/// How many rounds a random test plays: DRIVE_BACKUP_HISTORIES, else `usual`.
func testRounds(_ usual: Int) -> Int {
    ProcessInfo.processInfo.environment["DRIVE_BACKUP_HISTORIES"].flatMap { Int($0) } ?? usual
}
