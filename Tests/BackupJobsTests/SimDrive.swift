internal import BlockIO
internal import Glibc
internal import Synchronization

/// A drive whose content follows from a list of stretches; of any size, since nothing of it is stored.
final class SimDrive: BlockDevice {
    struct Stretch: Sendable, Hashable {
        enum Content: Sendable, Hashable { case pattern, zeroes }
        var range: ByteRange
        var content: Content
        /// The drive says that it is zero; only where it is.
        var isKnownZero: Bool
        var isAllocated: Bool
    }

    struct Faults: Sendable {
        /// The number of the read whose first byte goes bad, counted from 0.
        var failingRead: Int?
        /// One in so many extent queries fails.
        var failingExtentsOneIn: Int?
    }

    private struct State {
        var reads = 0
        var queries = 0
        var inFlight = 0
        /// A byte that cannot be read any more.
        var bad: UInt64?
        var failed: ByteRange?
    }

    let name = "simulated drive"
    let engine: any IOEngine
    let size: UInt64
    let isReadOnly = true
    let limits = BlockLimits()
    let stretches: [Stretch]
    let faults: Faults
    private let sim: SimEngine?
    private let state = Mutex(State())

    init(_ stretches: [Stretch], engine: any IOEngine, faults: Faults = Faults()) {
        self.stretches = stretches
        self.engine = engine
        self.faults = faults
        sim = engine as? SimEngine
        size = stretches.last?.range.end ?? 0
    }

    var reads: Int { state.withLock { $0.reads } }
    var queries: Int { state.withLock { $0.queries } }
    var inFlight: Int { state.withLock { $0.inFlight } }
    /// The range of the smallest read that failed.
    var failed: ByteRange? { state.withLock { $0.failed } }

    /// Now and then, where nothing is to fail.
    func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool {
        guard let sim, faults.failingRead == nil, sim.random({ $0.oneIn(2) }) else { return false }
        state.withLock { $0.reads += 1 }
        fill(range, buffer.bytes)
        return true
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        engine.preconditionCurrent()
        try check(range, to: "read")
        precondition(buffer.count == Int(range.length), "the buffer is as long as the range")
        let isFailing = state.withLock { state in
            defer { state.reads += 1 }
            state.inFlight += 1
            if state.reads == faults.failingRead { state.bad = state.bad ?? range.offset }
            return state.bad.map { range.contains(ByteRange(offset: $0, length: 1)) } ?? false
        }
        await sim?.latency()
        state.withLock { $0.inFlight -= 1 }
        if isFailing {
            state.withLock { state in
                if state.failed.map({ range.length < $0.length }) ?? true { state.failed = range }
            }
            throw BlockError("Couldn't read \(range) of \(name)", errno: EIO, range: range)
        }
        fill(range, buffer.bytes)
    }

    /// What is really at `range`.
    func fill(_ range: ByteRange, _ bytes: UnsafeMutableRawBufferPointer) {
        guard let base = bytes.baseAddress else { return }
        var next = range.offset
        while next < range.end {
            let stretch = stretches[index(at: next)]
            let end = min(range.end, stretch.range.end)
            if stretch.content == .zeroes {
                memset(base + Int(next - range.offset), 0, Int(end - next))
                next = end
                continue
            }
            while next < end {
                let stop = min(end, (next | 4095) + 1)
                memset(base + Int(next - range.offset), Self.pattern(next / 4096), Int(stop - next))
                next = stop
            }
        }
    }

    private static func pattern(_ block: UInt64) -> Int32 { Int32(block &* 0x9e37_79b9 % 230 + 1) }

    func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        engine.preconditionCurrent()
        precondition(!range.isEmpty, "extents are asked for of some bytes")
        state.withLock { $0.queries += 1 }
        await sim?.latency()
        let (limit, isFailing) =
            sim?.random { chance in
                (
                    chance.oneIn(3) ? 1 + chance.below(4) : 1000,
                    faults.failingExtentsOneIn.map { chance.oneIn($0) } ?? false
                )
            } ?? (1000, false)
        if isFailing { throw BlockError("Couldn't find out what is in \(range) of \(name)", errno: EIO) }
        var answer: [Extent] = []
        var index = index(at: range.offset)
        while index < stretches.count, answer.count < limit, stretches[index].range.offset < range.end {
            let stretch = stretches[index]
            answer.append(
                Extent(
                    stretch.range.clamped(to: range), isZero: stretch.isKnownZero,
                    isAllocated: stretch.isAllocated))
            index += 1
        }
        return answer
    }

    private func index(at offset: UInt64) -> Int {
        var low = 0
        var high = stretches.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if stretches[middle].range.offset <= offset { low = middle } else { high = middle }
        }
        return low
    }

    func write(_ range: ByteRange, from _: IOSlice) async throws(BlockError) { throw readOnly }
    func writeZeroes(_ range: ByteRange, mayUnmap _: Bool) async throws(BlockError) { throw readOnly }
    func discard(_ range: ByteRange) async throws(BlockError) { throw readOnly }
    func flush() async throws(BlockError) {}
    func close() async throws(BlockError) {}

    private var readOnly: BlockError { BlockError(.invalid, "\(name) is read-only") }
}

extension SimDrive {
    func clusters(of clusterSize: UInt64) -> [ByteRange] {
        stride(from: 0, to: size, by: Int(clusterSize)).map { start in
            ByteRange(start..<min(size, start + clusterSize))
        }
    }

    /// Any part of `cluster` is in the top layer.
    func isTouched(_ cluster: ByteRange) -> Bool {
        stretches.contains { $0.isAllocated && $0.range.overlaps(cluster) }
    }

    /// A drive of about `clusters` times 64 KiB, with or without a backing file.
    static func random(
        _ chance: inout Chance, clusters: Int, hasBacking: Bool, engine: any IOEngine, faults: Faults
    ) -> SimDrive {
        let whole = UInt64(clusters) << 16
        let size = chance.oneIn(2) ? whole : whole - min(whole, chance.below(70_000))
        let granularity = chance.pick([1, 512, 4096, 65536] as [UInt64])
        var stretches: [Stretch] = []
        var next: UInt64 = 0
        while next < size {
            let most: UInt64 = chance.oneIn(3) ? 600_000 : 80_000
            let length = max(granularity, chance.below(most) / granularity * granularity)
            let end = min(size, next + length)
            let kind = chance.below(4)
            stretches.append(
                Stretch(
                    range: ByteRange(next..<end), content: kind < 2 ? .pattern : .zeroes,
                    isKnownZero: kind == 2, isAllocated: !hasBacking || chance.oneIn(2)))
            next = end
        }
        return SimDrive(stretches, engine: engine, faults: faults)
    }
}
