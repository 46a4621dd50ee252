internal import BackupJobs
internal import BlockIO
internal import Glibc
internal import Synchronization

/// A simulated target as one agent sees it; what it holds outlives the agents.
final class LiveTarget: BackupTarget {
    final class Content: Sendable {
        /// nil: never written.
        let values: Mutex<[UInt32?]>
        /// Units that are in the page cache only, since they could not be written back; nil: none was tried yet.
        let lost = Mutex<Set<Int>?>(nil)
        let fault = Mutex<Fault?>(nil)
        /// A write has failed as one that cannot be tried again.
        let hasLost = Atomic(false)

        /// Units that cannot be written.
        struct Fault: Sendable, Hashable {
            var units: Range<Int>
            var errno: Int32
            /// After so many failures it is gone; nil: it stays.
            var failuresLeft: Int?
        }

        /// How it takes a clone.
        enum Cloning: Sendable, Hashable {
            case impossible
            /// From the clone of that number on, counted from 1, each one fails in its midst.
            case fails(from: Int)
            case works
        }

        /// The error number of a write to `units` that fails.
        func fails(_ units: Range<Int>) -> Int32? {
            fault.withLock { fault in
                guard let found = fault, found.units.overlaps(units) else { return nil }
                if let left = found.failuresLeft {
                    if left <= 1 { fault = nil } else { fault?.failuresLeft = left - 1 }
                }
                return found.errno
            }
        }

        init(units: Int) { values = Mutex(Array(repeating: nil, count: units)) }

        /// Loses some of what was written, the first time it is called; true then.
        func lose(_ sim: SimEngine) -> Bool {
            let written = values.withLock { values in values.indices.filter { values[$0] != nil } }
            return lost.withLock { lost in
                guard lost == nil else { return false }
                lost = Set(written.filter { _ in sim.random { $0.oneIn(3) } })
                return true
            }
        }

        /// What is there once the page cache is gone: `.max`, a value that nobody writes, for what was lost.
        func kept() -> [UInt32?] {
            var kept = values.withLock { $0 }
            for unit in lost.withLock({ $0 ?? [] }) { kept[unit] = .max }
            return kept
        }
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
    private let losesWriteBack: Bool
    /// The failing write tells of data that was written before.
    private let failsForGood: Bool
    /// What can be cloned, and how that goes; nil: nobody is to try.
    private let source: (drive: DiskContent, cloning: Content.Cloning)?
    private let clonings = Atomic(0)

    init(
        _ content: Content, source: (drive: DiskContent, cloning: Content.Cloning)?, clusterSize: UInt64,
        _ sim: SimEngine, _ pieces: PiecesInFlight, failing: Int?,
        slowness: Int, losesWriteBack: Bool, failsForGood: Bool
    ) {
        self.failsForGood = failsForGood
        self.source = source
        self.losesWriteBack = losesWriteBack
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
        if let errno = content.fails(Int(range.offset / 512)..<Int(range.end / 512)) {
            throw BlockError("Couldn't write \(range) of \(name)", errno: errno, range: range)
        }
        guard number == failing else { return }
        failure.store(true, ordering: .relaxed)
        var error = BlockError("Couldn't write \(range) of \(name)", errno: EIO, range: range)
        if failsForGood {
            error.code = .dataLost
            content.hasLost.store(true, ordering: .relaxed)
        }
        throw error
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
            let number = pieces.add(to: "target") { [content] in
                Trace.note("target: units \(piece) = \(part.first?.map { $0 } ?? 0) land")
                content.values.withLock { $0.replaceSubrange(piece, with: part) }
                content.lost.withLock { $0?.subtract(piece) }
            }
            await delay()
            pieces.land(number)
        }
    }

    var clones: Bool { source != nil }

    /// Part by part, in any order, while guests write: what the drive holds when a part lands.
    func clone(_ range: ByteRange) async throws(BlockError) {
        let number = clonings.add(1, ordering: .relaxed).newValue
        await delay()
        guard let source, source.cloning != .impossible else {
            throw BlockError(.unsupported, "\(name) cannot share blocks")
        }
        let all = Int(range.offset / 512)..<Int(range.end / 512)
        let cuts = (0..<6).map { _ in all.lowerBound + sim.random { $0.below(all.count + 1) } }.sorted()
        let parts = zip([all.lowerBound] + cuts, cuts + [all.upperBound]).map { $0..<$1 }.shuffled(sim)
        for (index, part) in parts.enumerated() where !part.isEmpty {
            if case .fails(let from) = source.cloning, number >= from, index == 3 {
                throw BlockError("Couldn't clone \(range) to \(name)", errno: EIO, range: range)
            }
            let piece = pieces.add(to: "target") { [content] in
                let values = part.map { source.drive.value($0) }
                Trace.note("target: units \(part) = \(values.first ?? 0) are cloned")
                content.values.withLock { $0.replaceSubrange(part, with: values) }
                content.lost.withLock { $0?.subtract(part) }
            }
            await delay()
            pieces.land(piece)
        }
        await delay()
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

    /// As a kernel does it: one flush is told of what could not be written back, and the next one is not.
    func publish() async throws(BlockError) {}

    func prepare() async throws(BlockError) {
        let hasLost = losesWriteBack && content.lose(sim)
        await delay()
        if hasLost { throw BlockError(.dataLost, "Couldn't flush \(name)", errno: EIO) }
    }

    func abandon(keep _: Bool) async {}
}
