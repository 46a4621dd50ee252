internal import BlockIO
internal import Glibc

/// An engine that does what the real one does, badly.
final class FaultyEngine: IOEngine {
    enum Fault: Sendable {
        /// Transfers move an odd number of bytes at most, and every third is interrupted.
        case transfersShort
        /// The file system knows neither holes nor a quick way to write zeroes.
        case allocatesNothing
        case failsFirstFlush
        /// Like the kernel: the first flush takes the report of lost data, and whoever comes while it is on its way has
        /// a success before it ends.
        case failsFirstFlushLate
    }

    private let engine: any IOEngine
    private let fault: Fault
    /// How many flushes, or transfers, there were.
    let calls: EngineIsolated<Int>

    init(_ engine: any IOEngine, _ fault: Fault) {
        self.engine = engine
        self.fault = fault
        calls = EngineIsolated(0, engine: engine)
    }

    var name: String { "faulty " + engine.name }
    var isCurrent: Bool { engine.isCurrent }
    func enqueue(_ job: consuming ExecutorJob) { engine.enqueue(job) }

    /// How many of `count` bytes the next transfer moves; nil when it is interrupted.
    private func permitted(_ count: Int) -> Int? {
        guard fault == .transfersShort, count > 1 else { return count }
        calls.value += 1
        return calls.value % 3 == 0 ? nil : min(count, calls.value % 5 == 0 ? 77 : 60_001)
    }

    func read(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64) async -> Int {
        guard let count = permitted(bytes.count) else { return Int(-EINTR) }
        return await engine.read(
            descriptor, UnsafeMutableRawBufferPointer(rebasing: bytes[..<count]), at: offset)
    }

    func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int {
        guard let count = permitted(bytes.count) else { return Int(-EINTR) }
        return await engine.write(descriptor, UnsafeRawBufferPointer(rebasing: bytes[..<count]), at: offset)
    }

    func synchronize(_ descriptor: Int32, dataOnly: Bool) async -> Int {
        calls.value += 1
        if fault == .failsFirstFlushLate {
            guard calls.value == 1 else { return 0 }
            for _ in 0..<100 { await engine.blocking {} }
            return Int(-EIO)
        }
        if fault == .failsFirstFlush { return calls.value == 1 ? Int(-EIO) : 0 }
        return await engine.synchronize(descriptor, dataOnly: dataOnly)
    }

    func allocate(_ descriptor: Int32, mode: Int32, _ range: ByteRange) async -> Int {
        if fault == .allocatesNothing { return Int(-EOPNOTSUPP) }
        return await engine.allocate(descriptor, mode: mode, range)
    }

    func synchronizeRange(_ descriptor: Int32, _ range: ByteRange, flags: UInt32) async -> Int {
        await engine.synchronizeRange(descriptor, range, flags: flags)
    }

    func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        await engine.blocking(body)
    }

    func shutDown() async { await engine.shutDown() }
}
