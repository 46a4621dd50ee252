internal import BackupJobs
internal import BlockIO
internal import Glibc
internal import Synchronization

/// A simulated target as one agent sees it; what it holds outlives the agents.
final class LiveTarget: BackupTarget {
    final class Content: Sendable {
        /// nil: never written.
        let values: Mutex<[UInt32?]>
        init(units: Int) { values = Mutex(Array(repeating: nil, count: units)) }
    }

    let name = "simulated target"
    let clusterSize: UInt64
    let content: Content
    private let sim: SimEngine
    private let pieces: PiecesInFlight
    /// The number of the write that fails.
    private let failing: Int?
    private let writes = Atomic(0)
    private let failure = Atomic(false)
    /// Slower than the drive, by that factor.
    private let slowness: Int

    init(
        _ content: Content, clusterSize: UInt64, _ sim: SimEngine, _ pieces: PiecesInFlight, failing: Int?,
        slowness: Int
    ) {
        self.content = content
        self.clusterSize = clusterSize
        self.sim = sim
        self.pieces = pieces
        self.failing = failing
        self.slowness = slowness
    }

    var hasFailed: Bool { failure.load(ordering: .relaxed) }

    private func delay() async {
        await sim.pass(.microseconds(sim.random { [slowness] in $0.below(400 * slowness) }))
    }

    private func request(_ range: ByteRange) async throws(BlockError) {
        let number = writes.add(1, ordering: .relaxed).newValue
        await delay()
        guard number == failing else { return }
        failure.store(true, ordering: .relaxed)
        throw BlockError("Couldn't write \(range) of \(name)", errno: EIO, range: range)
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await request(range)
        let units = Int(range.offset / 512)..<Int(range.end / 512)
        let values = units.map { unit -> UInt32? in
            let start = (unit - units.lowerBound) * 512
            return DiskContent.value(UnsafeRawBufferPointer(buffer[start..<start + 512].bytes), unit: unit)
                ?? .max
        }
        await land(units, values)
    }

    func writeZeroes(_ range: ByteRange) async throws(BlockError) {
        try await request(range)
        let units = Int(range.offset / 512)..<Int(range.end / 512)
        await land(units, Array(repeating: 0, count: units.count))
    }

    private func land(_ units: Range<Int>, _ values: [UInt32?]) async {
        let middle = units.lowerBound + sim.random { $0.below(units.count + 1) }
        for piece in [units.lowerBound..<middle, middle..<units.upperBound] where !piece.isEmpty {
            let part = values[piece.lowerBound - units.lowerBound..<piece.upperBound - units.lowerBound]
            let number = pieces.add { [content] in
                Trace.note("target: units \(piece) = \(part.first?.map { $0 } ?? 0) land")
                content.values.withLock { $0.replaceSubrange(piece, with: part) }
            }
            await delay()
            pieces.land(number)
        }
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        await delay()
        let values = content.values.withLock { $0 }
        for unit in Int(range.offset / 512)..<Int(range.end / 512) {
            let start = unit * 512 - Int(range.offset)
            let value = values[unit] ?? 0
            DiskContent.fill(buffer[start..<start + 512].bytes, value, unit: unit)
        }
    }

    func complete() async throws(BlockError) { await delay() }
    func abandon(keep _: Bool) async {}
}
