internal import BlockIO
internal import TestKit
internal import Testing

@Suite("Meetings of engines")
struct EngineMeetingTests {
    @Test("meetings of the same engines that are asked for at once all take place, one at a time")
    func crosswise() async throws {
        let engines: [any IOEngine] = (0..<3).map { ThreadsEngine(name: "meet \($0)") }
        let steps = Locked(0)
        for _ in 0..<1000 {
            let haveMet = await withTaskGroup(of: Bool.self) { group in
                for number in 0..<8 {
                    // In another order each, and with another one left out.
                    var those = engines
                    those.remove(at: number % 3)
                    let order = number.isMultiple(of: 2) ? those : those.reversed()
                    group.addTask {
                        await EngineMeeting.hold(order, within: .seconds(60)) { _ in
                            steps.withLock { $0 += 1 }
                        }
                    }
                }
                return await group.reduce(true) { $0 && $1 }
            }
            #expect(haveMet)
        }
        #expect(steps.withLock { $0 } == 1000 * 8 * 2)
        for engine in engines { await engine.shutDown() }
    }
}
