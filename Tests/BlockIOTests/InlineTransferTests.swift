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

    @Test("after a slow write the ring writes for a while")
    func slowWrites() throws {
        let file = try ScratchFile(bytes: 1 << 16)
        let clock = Clock()
        let transfers = InlineTransfers(now: clock.look)
        let buffer = IOBuffer(count: 128 << 10)
        let block = UnsafeRawBufferPointer(rebasing: buffer.bytes[..<4096])
        #expect(transfers.write(file.descriptor, block, at: 0) == 4096)
        #expect(transfers.write(file.descriptor, UnsafeRawBufferPointer(buffer.bytes), at: 0) == nil)
        // Twenty times as long as it took, a second at most.
        for (took, pause) in [(3_000_000, 60_000_000), (400_000_000, 1_000_000_000)] as [(UInt64, UInt64)] {
            clock.step = took
            #expect(transfers.write(file.descriptor, block, at: 0) == 4096)
            clock.step = 0
            #expect(transfers.write(file.descriptor, block, at: 0) == nil)
            clock.now += pause - 1_000_000
            #expect(transfers.write(file.descriptor, block, at: 0) == nil)
            clock.now += 2_000_000
            #expect(transfers.write(file.descriptor, block, at: 0) == 4096)
        }
        #expect(transfers.write(-1, block, at: 0) == Int(-EBADF))
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
