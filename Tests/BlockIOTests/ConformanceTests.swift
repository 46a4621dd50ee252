internal import BlockIO
internal import TestKit
internal import Testing

@Suite("What every device does")
struct ConformanceTests {
    @Test("a simulated disk conforms", arguments: [UInt64(0), 1, 4096, 300_001, 1 << 20])
    func simulatedDisk(size: UInt64) async throws {
        var conformance = Conformance(size: size)
        conformance.rounds = 10
        let seed = conformance.seed
        try await conformance.check { engine in SimDisk(size: size, engine: engine, seed: seed) }
    }
}
