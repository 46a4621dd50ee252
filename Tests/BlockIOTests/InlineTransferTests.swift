internal import Glibc
internal import Testing

@testable internal import BlockIO

@Suite("Transfers that a ring makes by itself")
struct InlineTransferTests {
    private final class Clock {
        var now: UInt64 = 1
        /// How much later it is each time somebody looks.
        var step: UInt64 = 0
        func look() -> UInt64 {
            now += step
            return now
        }
    }

    /// Transfers whose clocks the test holds, and a block to write.
    private struct Bench {
        let file: ScratchFile
        let clock = Clock()
        let waits = Clock()
        let transfers: InlineTransfers
        let buffer = IOBuffer(count: 4096)

        init() throws {
            file = try ScratchFile(bytes: 1 << 16)
            transfers = InlineTransfers(now: clock.look, waits: waits.look)
        }

        /// Whether a block is written in this step, which takes so many nanoseconds, and `waits` or not.
        func writes(taking time: UInt64 = 0, waiting isWaiting: Bool = false, inTurn: Bool = false) -> Bool {
            if !inTurn { transfers.beginTurn() }
            // The thread sleeps between writes, as ever.
            waits.now += 1
            clock.step = time
            waits.step = isWaiting ? 1 : 0
            defer { clock.step = 0 }
            return transfers.write(file.descriptor, UnsafeRawBufferPointer(buffer.bytes), at: 0) == 4096
        }
    }

    @Test("when slow writes wait, the ring writes for a while")
    func slowWrites() throws {
        let bench = try Bench()
        #expect(bench.writes())
        let large = IOBuffer(count: 128 << 10)
        let long = UnsafeRawBufferPointer(large.bytes)
        #expect(bench.transfers.write(bench.file.descriptor, long, at: 0) == long.count)
        // The first is only a reason to look, and ends the turn.
        #expect(bench.writes(taking: 3_000_000, waiting: true))
        #expect(!bench.writes(inTurn: true))
        #expect(bench.writes())
        // Long ones wait until all goes well again.
        #expect(bench.transfers.write(bench.file.descriptor, long, at: 0) == nil)
        // Twenty times as long as it took, a second at most.
        for (took, pause) in [(3_000_000, 60_000_000), (400_000_000, 1_000_000_000)] as [(UInt64, UInt64)] {
            #expect(bench.writes(taking: took, waiting: true))
            #expect(!bench.writes())
            bench.clock.now += pause - 1_000_000
            #expect(!bench.writes())
            bench.clock.now += 2_000_000
            #expect(bench.writes())
        }
        #expect(bench.transfers.write(-1, UnsafeRawBufferPointer(bench.buffer.bytes), at: 0) == Int(-EBADF))
        // Nobody has looked for a while: as the first.
        bench.clock.now += 1_000_000_000
        #expect(bench.writes(taking: 3_000_000, waiting: true))
        #expect(bench.writes(taking: 3_000_000, waiting: true))
        #expect(!bench.writes())
    }

    @Test("a thread that is put off its processor writes on, unless it is away for long")
    func stolenTime() throws {
        let bench = try Bench()
        for _ in 0..<10 { #expect(bench.writes(taking: 3_000_000)) }
        #expect(bench.writes(taking: 60_000_000))
        #expect(!bench.writes())
    }

    @Test("that a thread has waited is known")
    func waitsAreCounted() {
        let before = InlineTransfers.waitsOfThread()
        for _ in 0..<3 { usleep(1000) }
        #expect(InlineTransfers.waitsOfThread() > before)
    }

    @Test("a turn has a bound, for writes and for reads")
    func turns() throws {
        let file = try ScratchFile(bytes: 1 << 16)
        let transfers = InlineTransfers(now: { 0 })
        let buffer = IOBuffer(count: 512)
        var writes = 0
        while transfers.write(file.descriptor, UnsafeRawBufferPointer(buffer.bytes), at: 0) != nil {
            writes += 1
        }
        #expect((32...1024).contains(writes))
        #expect(transfers.read(file.descriptor, buffer.bytes, at: 0) == nil)
        transfers.beginTurn()
        var reads = 0
        while transfers.read(file.descriptor, buffer.bytes, at: 0) != nil { reads += 1 }
        #expect((128...4096).contains(reads))
    }

    @Test("what needs no disk is answered at once")
    func answers() throws {
        let file = try ScratchFile(bytes: 4 << 20)
        let transfers = InlineTransfers(now: { 0 })
        let buffer = IOBuffer(count: 512)
        #expect(transfers.read(file.descriptor, buffer.bytes, at: 1 << 20) == 512)
        #expect(buffer.bytes.loadUnaligned(as: UInt32.self) == 2048)
        #expect(transfers.read(file.descriptor, buffer.bytes, at: 4 << 20) == 0)
        #expect(transfers.read(-1, buffer.bytes, at: 0) == Int(-EBADF))
    }
}
