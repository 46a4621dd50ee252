internal import BackupJobs
internal import BlockIO
internal import Glibc
internal import Synchronization

/// A target in memory that watches what a job does to it.
final class SimTarget: BackupTarget {
    struct Faults: Sendable {
        /// The number of the request that fails, counted from 0.
        var failing: Int?
        /// From this request on, none returns until `release`.
        var hanging: Int?
    }

    private struct State {
        var requests = 0
        var inFlight: [ByteRange] = []
        var taken: [ByteRange] = []
        var violations: [String] = []
        var isOver = false
        var failed: ByteRange?
        var isReleased = false
        var hung: [UnsafeContinuation<Void, Never>] = []
        var zeroRequests = 0
        var busy = 0
        var largest: UInt64 = 0
    }

    let name = "simulated target"
    let clusterSize: UInt64
    let size: UInt64
    /// What it holds; of a very large target nothing is kept.
    let content: IOBuffer
    /// What it can be cloned from.
    private let source: SimDrive?
    private let sim: SimEngine?
    private let faults: Faults
    private let state = Mutex(State())

    /// A target of `size` bytes that holds the byte `initially` everywhere.
    init(
        size: UInt64, clusterSize: UInt64, initially: UInt8, sim: SimEngine?, faults: Faults = Faults(),
        source: SimDrive? = nil
    ) {
        self.source = source
        self.clusterSize = clusterSize
        self.sim = sim
        self.faults = faults
        self.size = size
        content = IOBuffer(count: size > 256 << 20 ? 0 : Int(size))
        content.bytes.fill(initially)
    }

    var violations: [String] { state.withLock { $0.violations } }
    var failed: ByteRange? { state.withLock { $0.failed } }
    var inFlight: Int { state.withLock { $0.inFlight.count } }
    var requests: Int { state.withLock { $0.requests } }
    var zeroRequests: Int { state.withLock { $0.zeroRequests } }
    /// The largest number of requests in flight at once.
    var depth: Int { state.withLock { $0.busy } }
    var largest: UInt64 { state.withLock { $0.largest } }
    /// What was written, in the order in which it was.
    var order: [ByteRange] { state.withLock { $0.taken } }
    /// What was written, in order of offset.
    var taken: [ByteRange] { state.withLock { $0.taken.sorted { $0.offset < $1.offset } } }

    /// The run has returned: nothing may start any more.
    func runIsOver() { state.withLock { $0.isOver = true } }

    /// Lets what hangs go on.
    func release() {
        let hung = state.withLock { state in
            state.isReleased = true
            defer { state.hung = [] }
            return state.hung
        }
        for one in hung { one.resume() }
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        let before = (buffer.bytes[0], buffer.bytes[buffer.count - 1])
        try await request(range, "write", isZero: false)
        if (buffer.bytes[0], buffer.bytes[buffer.count - 1]) != before {
            violate("the buffer of \(range) changed while it was being written")
        }
        // Late, so that a buffer that was given back too early shows in the content.
        part(range)?.copyMemory(from: UnsafeRawBufferPointer(buffer.bytes))
        end(range)
    }

    func writeZeroes(_ range: ByteRange) async throws(BlockError) {
        try await request(range, "write zeroes to", isZero: true)
        part(range)?.fill(0)
        end(range)
    }

    var clones: Bool { source != nil }

    func clone(_ range: ByteRange) async throws(BlockError) {
        try await request(range, "clone", isZero: false)
        if let part = part(range) { source?.fill(range, part) }
        end(range)
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        await sim?.latency()
        if let part = part(range) { buffer.bytes.copyMemory(from: UnsafeRawBufferPointer(part)) }
    }

    func prepare() async throws(BlockError) {}
    func publish() async throws(BlockError) {}
    func abandon(keep _: Bool) async {}

    private func part(_ range: ByteRange) -> UnsafeMutableRawBufferPointer? {
        content.count == 0 ? nil : content[Int(range.offset)..<Int(range.end)].bytes
    }

    private func request(_ range: ByteRange, _ verb: String, isZero: Bool) async throws(BlockError) {
        let number = state.withLock { state in
            if state.isOver { state.violations.append("\(verb) \(range) after the run was over") }
            if range.isEmpty || range.end > size {
                state.violations.append("\(verb) \(range), beyond the end")
            }
            for other in state.inFlight where other.overlaps(range) {
                state.violations.append("\(verb) \(range) while \(other) is in flight")
            }
            for other in state.taken where other.overlaps(range) {
                state.violations.append("\(verb) \(range) a second time, after \(other)")
            }
            state.inFlight.append(range)
            state.busy = max(state.busy, state.inFlight.count)
            state.largest = max(state.largest, range.length)
            state.zeroRequests += isZero ? 1 : 0
            defer { state.requests += 1 }
            return state.requests
        }
        await sim?.latency()
        if let hanging = faults.hanging, number >= hanging {
            await withUnsafeContinuation { continuation in
                let isReleased = state.withLock { state in
                    if !state.isReleased { state.hung.append(continuation) }
                    return state.isReleased
                }
                if isReleased { continuation.resume() }
            }
        }
        if number == faults.failing {
            state.withLock { state in
                state.failed = state.failed ?? range
                state.inFlight.removeAll { $0 == range }
            }
            throw BlockError("Couldn't \(verb) \(range) of \(name)", errno: ENOSPC, range: range)
        }
    }

    private func end(_ range: ByteRange) {
        state.withLock { state in
            state.inFlight.removeAll { $0 == range }
            state.taken.append(range)
        }
    }

    private func violate(_ what: String) { state.withLock { $0.violations.append(what) } }
}

extension UnsafeMutableRawBufferPointer {
    func fill(_ byte: UInt8) {
        if let baseAddress { memset(baseAddress, Int32(byte), count) }
    }

    func isSame(as other: UnsafeMutableRawBufferPointer) -> Bool {
        guard let baseAddress, let otherAddress = other.baseAddress else { return count == other.count }
        return count == other.count && memcmp(baseAddress, otherAddress, count) == 0
    }
}
