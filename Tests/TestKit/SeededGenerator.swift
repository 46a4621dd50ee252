internal import Glibc

/// A small random generator (SplitMix64) whose whole future follows from its seed.
package struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    package init(_ seed: UInt64) { state = seed }

    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }

    /// A generator of its own for a part of a test, so that the parts do not influence each other.
    package mutating func fork() -> SeededGenerator { SeededGenerator(next()) }

    /// True once in `count` times on average.
    package mutating func oneIn(_ count: Int) -> Bool { Int.random(in: 0..<count, using: &self) == 0 }
}

/// The seed of a random test: the environment's DRIVE_BACKUP_SEED, else a new one. It is printed, so that a failure can
/// be repeated.
package func testSeed(_ name: String = #function) -> UInt64 {
    let given = getenv("DRIVE_BACKUP_SEED").flatMap { UInt64(String(cString: $0)) }
    let seed = given ?? UInt64.random(in: 0...UInt64(UInt32.max))
    print("\(name): DRIVE_BACKUP_SEED=\(seed)")
    return seed
}

/// How many histories or rounds a random test plays: the environment's DRIVE_BACKUP_HISTORIES, else `usual`.
package func testRounds(_ usual: Int) -> Int {
    getenv("DRIVE_BACKUP_HISTORIES").flatMap { Int(String(cString: $0)) } ?? usual
}
