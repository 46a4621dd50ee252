internal import BlockIO
internal import Glibc
internal import Synchronization

/// What a simulated disk holds, by itself: it outlives the agents that use it, as the page cache does.
///
/// Content is counted in units of a sector; each unit holds a value that says who wrote it, 0 for zeroes.
final class DiskContent: Sendable {
    static let unit: UInt64 = 512
    /// Disks with a backing file are allocated in this many bytes.
    static let allocationUnit: UInt64 = 65536

    struct State {
        /// nil: the backing file shows.
        var values: [UInt32?]
        /// The disk can tell that the block is zero.
        var isHole: [Bool]
        /// Units that cannot be read.
        var bad: Set<Int> = []
        /// After so many reads that failed they can be read again; nil: never.
        var failuresLeft: Int?
    }

    let size: UInt64
    /// The backing file's values.
    let backing: [UInt32]?
    let state: Mutex<State>

    init(size: UInt64, values: [UInt32?], backing: [UInt32]?) {
        self.size = size
        self.backing = backing
        let blocks = Int(size.dividedRoundingUp(by: 4096))
        var state = State(values: values, isHole: Array(repeating: false, count: blocks))
        for block in 0..<blocks {
            let units = block * 8..<min(values.count, block * 8 + 8)
            state.isHole[block] = units.allSatisfy { values[$0] == 0 } && block % 3 != 0
        }
        self.state = Mutex(state)
    }

    func value(_ unit: Int) -> UInt32 { state.withLock { $0.values[unit] } ?? backing?[unit] ?? 0 }

    func isAllocated(_ units: Range<Int>) -> Bool {
        state.withLock { $0.values[units].contains { $0 != nil } }
    }

    func land(_ units: Range<Int>, _ values: [UInt32], isHole: Bool = false) {
        state.withLock { state in
            for (unit, value) in zip(units, values) {
                state.values[unit] = value
                state.bad.remove(unit)
            }
            let blocks = units.lowerBound / 8..<(units.upperBound + 7) / 8
            for block in blocks {
                let isWhole =
                    units.lowerBound <= block * 8
                    && units.upperBound >= min(state.values.count, block * 8 + 8)
                if !isHole { state.isHole[block] = false } else if isWhole { state.isHole[block] = true }
            }
        }
    }

    /// Gives the allocation units of `units` values of their own: what shone through is copied.
    func allocate(_ units: Range<Int>) {
        guard let backing else { return }
        let per = Int(Self.allocationUnit / Self.unit)
        state.withLock { state in
            for unit in units.lowerBound / per
                * per..<min(state.values.count, (units.upperBound + per - 1) / per * per)
            where state.values[unit] == nil { state.values[unit] = backing[unit] }
        }
    }

    /// What a unit of that value looks like.
    static func fill(_ bytes: UnsafeMutableRawBufferPointer, _ value: UInt32, unit: Int) {
        guard let start = bytes.baseAddress else { return }
        guard value != 0 else {
            memset(start, 0, bytes.count)
            return
        }
        start.storeBytes(of: UInt64(value) << 32 | UInt64(unit), as: UInt64.self)
        var filled = 8
        while filled < bytes.count {
            memcpy(start + filled, start, min(filled, bytes.count - filled))
            filled *= 2
        }
    }

    /// The value that a unit shows, nil when it shows none.
    static func value(_ bytes: UnsafeRawBufferPointer, unit: Int) -> UInt32? {
        guard let start = bytes.baseAddress else { return nil }
        let word = start.loadUnaligned(as: UInt64.self)
        // Every word is the one before it.
        guard memcmp(start, start + 8, bytes.count - 8) == 0 else { return nil }
        if word == 0 { return 0 }
        return word & 0xffff_ffff == UInt64(unit) ? UInt32(word >> 32) : nil
    }

    /// Fills memory with what units hold; false when one of them cannot be read.
    func read(_ units: Range<Int>, _ bytes: UnsafeMutableRawBufferPointer) -> Bool {
        state.withLock { state in
            for unit in units {
                let start = (unit - units.lowerBound) * 512
                let value = state.values[unit] ?? backing?[unit] ?? 0
                Self.fill(
                    UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + 512]), value, unit: unit)
            }
            guard !state.bad.isEmpty, units.contains(where: state.bad.contains) else { return true }
            if let left = state.failuresLeft {
                state.failuresLeft = left - 1
                if left <= 1 { state.bad = [] }
            }
            return false
        }
    }
}

/// A piece of a write on its way: it lands by itself, in any order, or is lost with the agent.
final class PiecesInFlight: Sendable {
    /// Of what the pieces of a killed agent land under the next one: of nothing, as that one waits for the locks under
    /// which they were sent. `tools/leave-out` says otherwise.
    static let late: Set<String> = []

    private struct Piece: Sendable {
        /// The disk's name.
        let disk: String
        let land: @Sendable () -> Void
    }

    private let pieces = Mutex<[Int: Piece]>([:])
    private let next = Atomic(0)

    func add(to disk: String, _ land: @escaping @Sendable () -> Void) -> Int {
        let number = next.add(1, ordering: .relaxed).newValue
        pieces.withLock { $0[number] = Piece(disk: disk, land: land) }
        return number
    }

    /// All that are on their way.
    var numbers: [Int] { pieces.withLock { $0.keys.sorted() } }

    func land(_ number: Int) { pieces.withLock { $0.removeValue(forKey: number) }?.land() }

    /// The agent was killed: each piece lands now, or never.
    func kill(_ chance: inout Chance) {
        let left = pieces.withLock { pieces in
            let left = pieces.sorted { $0.key < $1.key }
            pieces = pieces.filter { Self.late.contains($0.value.disk) }
            return left
        }
        for (_, piece) in left where chance.oneIn(2) && !Self.late.contains(piece.disk) { piece.land() }
    }
}

/// A simulated disk as one agent sees it: every request takes its time, in pieces.
final class LiveDisk: BlockDevice {
    let content: DiskContent
    let sim: SimEngine
    let pieces: PiecesInFlight
    let name: String
    /// One in so many requests takes very long.
    let slowness: Int
    let isReadOnly = false
    let limits = BlockLimits()
    /// Told of each write and zero before it begins.
    let onChange = Mutex<@Sendable (Range<Int>) -> Void>({ _ in })

    /// Every discard of it has an effect.
    let isStaging: Bool
    /// The number of the write for which there is no space any more.
    private let full: Int?
    private let writes = Atomic(0)

    init(
        _ content: DiskContent, _ sim: SimEngine, _ pieces: PiecesInFlight, name: String, slowness: Int,
        isStaging: Bool = false, full: Int? = nil
    ) {
        self.full = full
        self.isStaging = isStaging
        self.content = content
        self.sim = sim
        self.pieces = pieces
        self.name = name
        self.slowness = slowness
    }

    var engine: any IOEngine { sim }
    var size: UInt64 { content.size }

    private func units(_ range: ByteRange) -> Range<Int> {
        precondition(range.offset % 512 == 0 && range.length % 512 == 0, "the simulation counts in sectors")
        return Int(range.offset / 512)..<Int(range.end / 512)
    }

    private func delay() async {
        let slowness = slowness
        let time = sim.random { chance in
            chance.oneIn(slowness) ? chance.below(30_000) : chance.oneIn(3) ? 0 : chance.below(800)
        }
        if time > 0 { await sim.pass(.microseconds(time)) }
    }

    /// Cuts a request into a few pieces.
    private func cut(_ units: Range<Int>) -> [Range<Int>] {
        var cuts = [units.lowerBound, units.upperBound]
        for _ in 0..<sim.random({ $0.below(4) }) {
            cuts.append(units.lowerBound + sim.random { $0.below(units.count + 1) })
        }
        cuts.sort()
        return zip(cuts, cuts.dropFirst()).map { $0..<$1 }.filter { !$0.isEmpty }
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "read")
        let all = units(range)
        var isBad = false
        for piece in cut(all).shuffled(sim) {
            await delay()
            let start = (piece.lowerBound - all.lowerBound) * 512
            if !content.read(piece, buffer[start..<start + piece.count * 512].bytes) { isBad = true }
        }
        if isBad { throw BlockError("Couldn't read \(range) of \(name)", errno: EIO, range: range) }
    }

    func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool {
        sim.random { $0.oneIn(2) } && content.read(units(range), buffer.bytes)
    }

    func beginRead(
        _ range: ByteRange, into buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        guard sim.random({ $0.oneIn(2) }) else { return false }
        // Its end is what `done` tells.
        Task(executorPreference: engine) {
            do throws(BlockError) {
                try await self.read(range, into: buffer)
                done(self.sim.random { $0.oneIn(8) } ? .unfinished : .done)
            } catch {
                done(.failed(error))
            }
        }
        return true
    }

    /// All, nothing, or a part of it.
    func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        guard sim.random({ $0.oneIn(2) }), full == nil else { return false }
        let all = units(range)
        onChange.withLock { $0 }(all)
        let count = sim.random { $0.oneIn(4) ? $0.below(all.count) : all.count }
        let landed = all.lowerBound..<all.lowerBound + count
        content.allocate(landed)
        content.land(landed, values(Array(landed), buffer), isHole: false)
        return count == all.count
    }

    func beginWrite(
        _ range: ByteRange, from buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        guard sim.random({ $0.oneIn(2) }) else { return false }
        // Its end is what `done` tells.
        Task(executorPreference: engine) {
            do throws(BlockError) {
                let isTorn = self.sim.random { $0.oneIn(8) }
                let count = isTorn ? self.sim.random { $0.below(buffer.count / 512 + 1) } * 512 : buffer.count
                if count > 0 {
                    try await self.write(range.prefix(UInt64(count)), from: buffer[0..<count])
                }
                done(isTorn ? .unfinished : .done)
            } catch {
                done(.failed(error))
            }
        }
        return true
    }

    private func values(_ units: [Int], _ buffer: IOSlice) -> [UInt32] {
        units.enumerated().map { index, unit in
            // What shows no value cannot be right: it is noted as one that nobody has written.
            DiskContent.value(
                UnsafeRawBufferPointer(buffer[index * 512..<index * 512 + 512].bytes), unit: unit)
                ?? .max
        }
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "write")
        let all = units(range)
        if writes.add(1, ordering: .relaxed).newValue == full {
            await delay()
            throw BlockError(.noSpace, "Couldn't write \(range) of \(name): no space", errno: ENOSPC)
        }
        onChange.withLock { $0 }(all)
        await land(all, values(Array(all), buffer), isHole: false)
    }

    private func land(_ all: Range<Int>, _ values: [UInt32], isHole: Bool) async {
        await withTaskGroup { group in
            for piece in cut(all) {
                let part = Array(
                    values[piece.lowerBound - all.lowerBound..<piece.upperBound - all.lowerBound])
                let number = pieces.add(to: name) { [content, name] in
                    Trace.note("\(name): units \(piece) = \(part.first ?? 0) land")
                    content.allocate(piece)
                    content.land(piece, part, isHole: isHole)
                }
                group.addTask {
                    await self.delay()
                    self.pieces.land(number)
                }
            }
        }
    }

    func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        try check(range, to: "zero")
        let all = units(range)
        onChange.withLock { $0 }(all)
        await land(all, Array(repeating: 0, count: all.count), isHole: mayUnmap)
    }

    func discard(_ range: ByteRange) async throws(BlockError) {
        try check(range, to: "discard")
        await delay()
        let whole =
            range.offset.roundedUp(
                toMultipleOf: 4096)..<max(
                range.offset.roundedUp(toMultipleOf: 4096), range.end.roundedDown(toMultipleOf: 4096))
        if whole.isEmpty || !isStaging && sim.random({ $0.oneIn(4) }) { return }
        let all = units(ByteRange(whole))
        await land(all, Array(repeating: 0, count: all.count), isHole: true)
    }

    func flush() async throws(BlockError) { await delay() }
    func close() async throws(BlockError) {}

    func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        var extents: [Extent] = []
        var position = range.offset
        let limit = sim.random { $0.oneIn(3) ? 1 + $0.below(3) : 100 }
        while position < range.end, extents.count < limit {
            if sim.random({ $0.oneIn(4) }) { await delay() }
            let unit = Int(position / 512)
            let end = min(range.end, position.roundedDown(toMultipleOf: 4096) + 4096)
            let (isHole, isAllocated) = content.state.withLock {
                ($0.isHole[unit / 8], $0.values[unit] != nil)
            }
            let isZero = isHole && isAllocated
            if let last = extents.last, last.isZero == isZero, last.isAllocated == isAllocated {
                extents[extents.count - 1].range = ByteRange(last.range.offset..<end)
            } else {
                extents.append(Extent(ByteRange(position..<end), isZero: isZero, isAllocated: isAllocated))
            }
            position = end
        }
        return extents
    }
}

extension Array where Element: Sendable {
    func shuffled(_ sim: SimEngine) -> [Element] {
        sim.random { chance in
            var result = self
            var index = result.count
            while index > 1 {
                index -= 1
                result.swapAt(index, chance.below(index + 1))
            }
            return result
        }
    }
}
