import DriveBackupWire
import Testing

@testable import DriveBackupRPC

@Suite("Random histories of a connection")
struct HistoryTests {
    /// Throws legal and illegal frames at a server's machine while its handlers send and end.
    @Test("every call ends once, and nothing stays of any connection")
    func server() throws {
        let seed = testSeed()
        for round in 0..<testRounds(2000) {
            var generator = SeededGenerator(seed &+ UInt64(round))
            var limits = RPCLimits()
            limits.maxCallsPerConnection = Int.random(in: 1...8, using: &generator)
            limits.maxBytesInFlight = Int.random(in: 2000...100_000, using: &generator)
            limits.maxPayload = Int.random(in: 1000...5000, using: &generator)
            var test = MachineUnderTest(limits: limits)
            var running: Set<UInt32> = []
            var stream: UInt32 = 1
            var last: UInt32 = 0
            test.receive(hello(credit: UInt64.random(in: 0...3000, using: &generator)))
            let isLegal = Bool.random(using: &generator)
            for _ in 0..<Int.random(in: 1...80, using: &generator) {
                let before = test.effects.count
                var bytes: [UInt8] = []
                let old = last == 0 ? 1 : UInt32.random(in: 0...last / 2, using: &generator) * 2 + 1
                let payload = [UInt8](repeating: 0x0A, count: Int.random(in: 0...6000, using: &generator))
                switch Int.random(in: 0...9, using: &generator) {
                case 0, 1, 2:
                    bytes = call(
                        stream, Bool.random(using: &generator) ? "known" : "other",
                        end: Bool.random(using: &generator),
                        timeout: UInt64.random(in: 0...3000, using: &generator), message: payload)
                    last = stream
                    stream += UInt32.random(in: 1...3, using: &generator) * 2
                case 3 where stream > 1: bytes = raw(5, stream: old)
                case 4 where stream > 1: bytes = credit(old, UInt64.random(in: 0...3000, using: &generator))
                case 5 where stream > 1:
                    bytes = raw(3, stream: old, flags: UInt8.random(in: 0...1, using: &generator), payload)
                case 6: bytes = raw(7, Frames.Ping(token: 5).encoded)
                case 7: test.now += Int64.random(in: 0...2000, using: &generator)
                case 8 where !isLegal:
                    bytes = (0..<20).map { _ in UInt8.random(in: 0...3, using: &generator) }
                default:
                    // A handler does something.
                    guard let chosen = running.sorted().randomElement(using: &generator) else { continue }
                    let message = [UInt8](repeating: 1, count: 900)
                    switch Int.random(in: 0...2, using: &generator) {
                    case 0:
                        _ = test.machine.send(message, on: chosen, now: test.now)
                        test.collect()
                    case 1:
                        if test.machine.answer(message, on: chosen, now: test.now) == .sent {
                            running.remove(chosen)
                        }
                        test.collect()
                    default:
                        running.remove(chosen)
                        test.finish(chosen)
                    }
                }
                while !bytes.isEmpty {
                    let count = min(bytes.count, Int.random(in: 1...7000, using: &generator))
                    test.receive(Array(bytes.prefix(count)))
                    bytes.removeFirst(count)
                }
                test.collect()
                for case .dispatch(let call) in test.effects[before...] {
                    #expect(running.insert(call.stream).inserted)
                }
                #expect(test.machine.openCalls <= limits.maxCallsPerConnection)
                #expect(test.budget.usedBytes <= limits.maxBytesInFlight)
                #expect(test.machine.link.pendingBytes <= limits.maxPendingBytes + 10_000)
            }
            if isLegal { #expect(try test.goAway() == nil, "seed \(seed), round \(round)") }
            test.effects += test.machine.disconnected(RPCStatus(.unavailable))
            for stream in running { test.machine.handlerEnded(stream) }
            #expect(test.machine.openCalls == 0)
            #expect(test.budget.usedBytes == 0, "seed \(seed), round \(round)")
            var ended: Set<UInt32> = []
            for (header, _) in try frames(test.sent) where header.type == .status {
                #expect(
                    ended.insert(header.stream).inserted,
                    "two statuses on stream \(header.stream), seed \(seed)")
            }
            // Whoever was told to stop had been started and was told once.
            #expect(Set(test.cancelled).count == test.cancelled.count)
        }
    }

    @Test("a client's machine survives any bytes, and ends each call once")
    func client() throws {
        let seed = testSeed()
        for round in 0..<testRounds(2000) / 4 {
            var generator = SeededGenerator(seed &+ UInt64(round))
            var machine = ClientMachine(limits: RPCLimits(), now: 0)
            var ended: [UInt32] = []
            func receive(_ bytes: [UInt8]) {
                for effect in bytes.withUnsafeBytes({ machine.receive($0, now: 0) }) {
                    if case .ended(let stream, _) = effect { ended.append(stream) }
                }
            }
            receive(hello())
            var opened: [UInt32] = []
            for _ in 0..<Int.random(in: 1...5, using: &generator) {
                if case .opened(let stream) = machine.open([], deadline: nil, now: 0) {
                    opened.append(stream)
                }
            }
            for _ in 0..<Int.random(in: 1...20, using: &generator) {
                let stream = UInt32.random(in: 0...11, using: &generator)
                let payload = (0..<Int.random(in: 0...20, using: &generator)).map { _ in
                    UInt8.random(in: 0...0xFF, using: &generator)
                }
                switch Int.random(in: 0...6, using: &generator) {
                case 0: receive(raw(UInt8.random(in: 0...10, using: &generator), stream: stream, payload))
                case 1:
                    receive(raw(4, stream: opened.randomElement(using: &generator) ?? 1, flags: 1, payload))
                case 2: receive(raw(4, stream: opened.randomElement(using: &generator) ?? 1, flags: 1))
                case 3: receive(raw(9, Frames.GoAway(lastStream: stream).encoded))
                case 4:
                    receive(
                        raw(3, stream: opened.randomElement(using: &generator) ?? 1, length: 5 << 20)
                            + [UInt8](repeating: 0, count: 5 << 20))
                default: receive(raw(3, stream: opened.randomElement(using: &generator) ?? 1, payload))
                }
            }
            for effect in machine.disconnected(RPCStatus(.unavailable)) {
                if case .ended(let stream, _) = effect { ended.append(stream) }
            }
            #expect(ended.sorted() == opened, "seed \(seed), round \(round)")
            #expect(machine.openCalls == 0)
        }
    }
}
