internal import BlockIO
internal import Synchronization
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Many reads of compressed clusters")
struct CompressedReadTests {
    @Test("eight are in memory at most, and the others have their turn", arguments: EngineKind.allCases)
    func atMostEight(kind: EngineKind) async throws {
        let directory = try TemporaryDirectory()
        let (raw, path) = (directory.file("a.raw"), directory.file("a.qcow2"))
        let cluster = 65536
        let disk = (0..<40 * cluster).map { UInt8(truncatingIfNeeded: $0 / 512) }
        try write(disk, to: raw)
        try await qemuImg(["convert", "-c", "-f", "raw", "-O", "qcow2", raw, path])
        try await onEngine(kind) { real in
            let engine = HeldReads(real)
            let image = try await openImage(path, format: .qcow2, on: engine)
            // The tables are in memory from now on.
            let first = IOBuffer(count: 512)
            try await image.device.read(ByteRange(offset: 0, length: 512), into: first.slice)
            engine.hold()
            try await withThrowingTaskGroup(of: Void.self) { group in
                for index in 0..<40 {
                    group.addTask {
                        // A part of a cluster takes the most memory.
                        let range = ByteRange(offset: UInt64(index * cluster + 512), length: 4096)
                        let buffer = IOBuffer(count: 4096)
                        try await image.device.read(range, into: buffer.slice)
                        let expected = Array(disk[Int(range.offset)..<Int(range.end)])
                        try expectEqual(Array(buffer.bytes), expected, "from \(range.offset)")
                    }
                }
                while engine.held < 8 { await Task.yield() }
                for _ in 0..<1000 { await Task.yield() }
                #expect(engine.held == 8)
                engine.release()
                try await group.waitForAll()
            }
            #expect(engine.most == 8)
            try await image.close()
        }
    }
}

/// An engine whose reads of files can be kept from beginning.
private final class HeldReads: IOEngine {
    private struct State {
        var isHolding = false
        var held: [CheckedContinuation<Void, Never>] = []
        var inFlight = 0
        var most = 0
    }

    private let engine: any IOEngine
    private let state = Mutex(State())

    init(_ engine: any IOEngine) { self.engine = engine }

    /// The reads that are being held.
    var held: Int { state.withLock { $0.held.count } }
    /// The largest number of reads that were in flight at the same time.
    var most: Int { state.withLock { $0.most } }

    func hold() { state.withLock { $0.isHolding = true } }

    func release() {
        let held = state.withLock { state in
            state.isHolding = false
            defer { state.held.removeAll() }
            return state.held
        }
        for continuation in held { continuation.resume() }
    }

    var name: String { "held " + engine.name }
    var isCurrent: Bool { engine.isCurrent }
    func enqueue(_ job: consuming ExecutorJob) { engine.enqueue(job) }

    func read(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64) async -> Int {
        state.withLock { state in
            state.inFlight += 1
            state.most = max(state.most, state.inFlight)
        }
        defer { state.withLock { $0.inFlight -= 1 } }
        if state.withLock({ $0.isHolding }) {
            await withCheckedContinuation { continuation in
                let isHeld = state.withLock { state in
                    if state.isHolding { state.held.append(continuation) }
                    return state.isHolding
                }
                if !isHeld { continuation.resume() }
            }
        }
        return await engine.read(descriptor, bytes, at: offset)
    }

    func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int {
        await engine.write(descriptor, bytes, at: offset)
    }

    func synchronize(_ descriptor: Int32, dataOnly: Bool) async -> Int {
        await engine.synchronize(descriptor, dataOnly: dataOnly)
    }

    func allocate(_ descriptor: Int32, mode: Int32, _ range: ByteRange) async -> Int {
        await engine.allocate(descriptor, mode: mode, range)
    }

    func synchronizeRange(_ descriptor: Int32, _ range: ByteRange, flags: UInt32) async -> Int {
        await engine.synchronizeRange(descriptor, range, flags: flags)
    }

    func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        await engine.blocking(body)
    }

    func shutDown() async { await engine.shutDown() }
}
