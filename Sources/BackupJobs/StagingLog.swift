internal import BlockIO

/// Where short pieces of old content go: one behind the other, first into memory that outlives a killed agent (a part of the
/// job's record), and from there to the staging file, behind the part that has a place for each block, a segment at a time.
///
/// To write a block to a place of its own in a sparse file takes the file system five times as long as to copy it; a log costs
/// the guest that copy. Slots are numbered through all segments. A table says which block each slot holds, as its number plus
/// one, 0 for none, and each of the buffers in memory which segment it holds, in the same way. The order is what makes
/// it safe: content, then the table; and a buffer is let go when the file has its segment. A slot's content never changes,
/// and is used no more when the block is forgotten; a segment of which all blocks are forgotten is punched, and then used again.
///
/// Space for it is taken when it is first needed. Used on the drive's engine.
final class StagingLog: Sendable {
    /// Where the content of a block is.
    enum Place {
        /// In memory; valid in this step.
        case memory(IOSlice)
        /// From this position of the file on.
        case file(UInt64)
    }

    private struct Segment {
        enum Stage { case free, open, full, leaving, onFile, punched }
        var stage = Stage.free
        /// How many of its slots hold something.
        var held = 0
        /// The buffer that has it; -1: none.
        var buffer = -1
        /// The file may have some of it.
        var isOnFile = false
    }

    private struct State: ~Copyable {
        /// Those that were ever used.
        var segments: [Segment] = []
        /// Which of them are free.
        var free: [Int] = []
        /// Those that are in use, punched ones left out.
        var used = 0
        /// The segment that is being filled, and how many of its slots are.
        var open: (segment: Int, filled: Int)?
        /// Those in memory that are to go to the file, oldest first.
        var full: [Int] = []
        /// On the file, and nobody needs them any more.
        var unpunched: [Int] = []
        var freeBuffers: [Int] = []
        /// How many buffers, and pages of the table, have space.
        var buffersWithSpace = 0
        var pagesWithSpace: Set<Int> = []
        var index = SlotIndex()
        /// What has come and is not in the index yet.
        var taken: [(block: Int, slot: Int)] = []
    }

    let shape: Shape
    private let record: MappedFile
    private let start: Int
    private let memory: IOBuffer
    private let state: EngineIsolated<State>

    /// The log in `record` from `start` on, a multiple of a page, with what a killed agent has left there; `space` is what of the
    /// record has space.
    init(_ record: MappedFile, at start: Int, shape: Shape, space: [Range<Int>], engine: any IOEngine) {
        precondition(
            start % 4096 == 0 && start + shape.recordLength <= record.length, "the log lies in its record")
        self.record = record
        self.start = start
        self.shape = shape
        let buffers = start + shape.holdersLength + shape.tableLength
        memory = IOBuffer(in: record, at: buffers, count: shape.buffers * Int(shape.segmentLength))
        let found = Self.find(record, start, shape, space)
        state = EngineIsolated(found, engine: engine)
    }

    private static func find(
        _ record: MappedFile, _ start: Int, _ shape: Shape, _ space: [Range<Int>]
    ) -> State {
        var found = State()
        found.segments.reserveCapacity(shape.segments)
        let table = start + shape.holdersLength
        for range in space {
            let part = range.clamped(to: table..<table + shape.slots * 8)
            for position in stride(from: part.lowerBound, to: part.upperBound, by: 8) {
                let slot = (position - table) / 8
                let word = Int(truncatingIfNeeded: record.load(at: position))
                guard (1...SlotIndex.Name.most).contains(word) else { continue }
                guard found.index.add(word - 1, in: slot) else {
                    // It had come a second time, and its first place counts.
                    record.store(0, at: position)
                    continue
                }
                let segment = slot / shape.blocksPerSegment
                while found.segments.count <= segment { found.segments.append(Segment()) }
                found.segments[segment].held += 1
            }
        }
        for segment in found.segments.indices where found.segments[segment].held > 0 {
            found.segments[segment].stage = .onFile
            found.segments[segment].isOnFile = true
            found.used += 1
        }
        found.free = found.segments.indices.filter { found.segments[$0].held == 0 }.reversed()
        guard space.contains(where: { $0.contains(start) }) else { return found }
        for buffer in 0..<shape.buffers {
            let word = record.load(at: start + buffer * 8)
            guard word > 0 else { continue }
            found.buffersWithSpace = buffer + 1
            let segment = Int(truncatingIfNeeded: word) - 1
            // Each segment is in one buffer.
            if found.segments.indices.contains(segment), found.segments[segment].held > 0,
                found.segments[segment].buffer < 0
            {
                found.segments[segment].stage = .full
                found.segments[segment].buffer = buffer
                found.full.append(segment)
            } else {
                record.store(0, at: start + buffer * 8)
            }
        }
        let taken = Set(found.full.map { found.segments[$0].buffer })
        found.freeBuffers = (0..<found.buffersWithSpace).filter { !taken.contains($0) }
        return found
    }

    // MARK: What it holds

    /// How many blocks it holds; one that has come a second time counts twice until `settle`.
    var held: Int { state.withState { $0.index.count + $0.taken.count } }

    /// What it takes of the file, now or later, in bytes.
    var length: UInt64 {
        state.withState { state in
            let empty = state.open.map { state.segments[$0.segment].held == 0 ? 1 : 0 } ?? 0
            return UInt64(state.used - empty) * shape.segmentLength
        }
    }

    /// The blocks that it holds, in no order.
    var blocks: [Int] {
        state.withState { state in
            state.index.blocks + Set(state.taken.map(\.block)).filter { state.index[$0] == nil }
        }
    }

    func place(of block: Int) -> Place? {
        let slot = state.withState { state in
            state.index[block] ?? state.taken.first { $0.block == block }?.slot
        }
        guard let slot else { return nil }
        let (segment, position) = slot.quotientAndRemainder(dividingBy: shape.blocksPerSegment)
        let buffer = state.value.segments[segment].buffer
        guard buffer >= 0 else { return .file(UInt64(slot) * JobRecord.blockSize) }
        return .memory(slots(position..<position + 1, of: buffer))
    }

    /// Slots of a buffer.
    private func slots(_ slots: Range<Int>, of buffer: Int) -> IOSlice {
        let (unit, first) = (Int(JobRecord.blockSize), buffer * shape.blocksPerSegment)
        return memory[(first + slots.lowerBound) * unit..<(first + slots.upperBound) * unit]
    }

    // MARK: What comes

    /// Memory for the content of so many blocks, to be filled and told by `take` in this step; nil where there is none. It takes
    /// up another segment only if it then takes no more than `most` bytes.
    func room(for blocks: Int, upTo most: () -> UInt64) -> IOSlice? {
        guard blocks <= shape.blocksPerSegment else { return nil }
        if let open = state.value.open, open.filled + blocks > shape.blocksPerSegment { close(open.segment) }
        let holdsSome = state.withState { state in state.open.map { state.segments[$0.segment].held > 0 } }
        guard holdsSome == true || length + shape.segmentLength <= most() && (holdsSome != nil || openNext())
        else { return nil }
        return state.withState { state in
            state.open.map { open in
                slots(open.filled..<open.filled + blocks, of: state.segments[open.segment].buffer)
            }
        }
    }

    /// The same for as many of these as the segment has room for, one of them at least.
    func room(forSome blocks: Int, upTo most: () -> UInt64) -> IOSlice? {
        let left = shape.blocksPerSegment - (state.value.open?.filled ?? 0)
        return room(for: min(blocks, left > 0 ? left : shape.blocksPerSegment), upTo: most)
    }

    /// The content of `blocks` is where `room` for them was, from its start on.
    func take(_ blocks: some Collection<Int>) {
        state.withState { state in
            guard let open = state.open else { preconditionFailure("there was room for what is taken") }
            var slot = open.segment * shape.blocksPerSegment + open.filled
            for block in blocks {
                note(UInt64(block) + 1, in: slot)
                state.taken.append((block, slot))
                slot += 1
            }
            state.segments[open.segment].held += blocks.count
            state.open = (open.segment, open.filled + blocks.count)
        }
    }

    /// So much has come that it is time to `settle`.
    var shouldSettle: Bool {
        state.value.taken.count >= min(Self.settledTogether, shape.blocksPerSegment)
    }

    /// The places in the index of blocks here and there are in no cache: many together are waited for at the same time.
    private static let settledTogether = 64

    /// Puts what has come into the index, and tells of each block that was not there; false when nothing has.
    @discardableResult
    func settle(_ isNew: (Int) -> Void) -> Bool {
        guard !state.value.taken.isEmpty else { return false }
        var again: [Int] = []
        state.withState { state in
            for (block, _) in state.taken { state.index.fetch(block) }
            for (block, slot) in state.taken {
                if state.index.add(block, in: slot) { isNew(block) } else { again.append(slot) }
            }
            state.taken.removeAll(keepingCapacity: true)
        }
        // What is there already stays.
        for slot in again { release(slot) }
        return true
    }

    private func note(_ word: UInt64, in slot: Int) {
        record.store(word, at: start + shape.holdersLength + slot * 8)
    }

    private func close(_ segment: Int) {
        state.value.open = nil
        if state.value.segments[segment].held > 0 {
            state.value.segments[segment].stage = .full
            state.value.full.append(segment)
        } else {
            letGo(segment)
        }
    }

    /// Begins to fill a segment; false when there is none, or no memory for it.
    private func openNext() -> Bool {
        guard let buffer = state.value.freeBuffers.last ?? newBuffer(),
            let segment = state.value.free.last ?? newSegment(), takeSpace(forTableOf: segment)
        else { return false }
        // The table has nothing of it yet.
        record.store(UInt64(segment) + 1, at: start + buffer * 8)
        state.withState { state in
            if state.freeBuffers.popLast() == nil { state.buffersWithSpace += 1 }
            if state.free.popLast() == nil { state.segments.append(Segment()) }
            state.segments[segment].stage = .open
            state.segments[segment].buffer = buffer
            state.used += 1
            state.open = (segment, 0)
        }
        return true
    }

    private func newSegment() -> Int? {
        state.value.segments.count < shape.segments ? state.value.segments.count : nil
    }

    private func newBuffer() -> Int? {
        let buffer = state.value.buffersWithSpace
        let length = Int(shape.segmentLength)
        let first = start + shape.holdersLength + shape.tableLength + buffer * length
        guard buffer < shape.buffers, buffer > 0 || takeSpace(start..<start + shape.holdersLength),
            takeSpace(first..<first + length)
        else { return nil }
        return buffer
    }

    private func takeSpace(forTableOf segment: Int) -> Bool {
        let bytes = shape.blocksPerSegment * 8
        let pages = segment * bytes / 4096...((segment + 1) * bytes - 1) / 4096
        for page in pages where !state.value.pagesWithSpace.contains(page) {
            let first = start + shape.holdersLength + page * 4096
            guard takeSpace(first..<first + 4096) else { return false }
            state.value.pagesWithSpace.insert(page)
        }
        return true
    }

    /// So much stays free where the record is, of half a file system if that is less, in bytes: what jobs must record of what they
    /// have saved and copied goes there, too, and they fail without.
    private static let spared: UInt64 = 64 << 20

    /// False when there is none: what comes goes to the file then, without us.
    private func takeSpace(_ range: Range<Int>) -> Bool {
        guard let space = record.space(), space.available >= min(Self.spared, space.total / 2) else {
            return false
        }
        do throws(BlockError) { try record.allocate(range) } catch { return false }
        return true
    }

    // MARK: What goes

    /// Nobody needs the block any more; nothing when it is not here.
    func forget(_ block: Int) {
        precondition(state.value.taken.isEmpty, "what has come is in the index before it goes")
        if let slot = state.value.index.remove(block) { release(slot) }
    }

    private func release(_ slot: Int) {
        note(0, in: slot)
        let segment = slot / shape.blocksPerSegment
        state.value.segments[segment].held -= 1
        guard state.value.segments[segment].held == 0 else { return }
        switch state.value.segments[segment].stage {
        case .full:
            state.withState { $0.full.removeAll { $0 == segment } }
            if state.value.segments[segment].isOnFile {
                letGoBuffer(of: segment)
                retire(segment)
            } else {
                letGo(segment)
            }
        case .onFile: retire(segment)
        // What comes is still to come, or what is on its way to the file comes there all the same.
        case .open, .leaving: break
        case .free, .punched: preconditionFailure("what is held is in a segment")
        }
    }

    /// A segment that is not on the file is free.
    private func letGo(_ segment: Int) {
        letGoBuffer(of: segment)
        state.withState { state in
            state.segments[segment].stage = .free
            state.free.append(segment)
            state.used -= 1
        }
    }

    private func letGoBuffer(of segment: Int) {
        let buffer = state.value.segments[segment].buffer
        record.store(0, at: start + buffer * 8)
        state.value.segments[segment].buffer = -1
        state.value.freeBuffers.append(buffer)
    }

    private func retire(_ segment: Int) {
        state.withState { state in
            state.segments[segment].stage = .punched
            state.unpunched.append(segment)
            state.used -= 1
        }
    }

    // MARK: To the file

    /// So much is in memory that it should be sent on.
    var shouldSend: Bool { state.value.full.count > shape.buffers / 2 }

    /// Writes a segment to `file`, which has them from `offset` on, and to its page cache where it `isReadSoon`; false when there is
    /// little in memory. An error leaves it there. By one task at a time.
    func sendNext(to file: any BlockDevice, at offset: UInt64, isReadSoon: Bool) async throws(BlockError)
        -> Bool
    {
        guard state.value.full.count > shape.buffers / 4 else { return false }
        let segment = state.value.full.removeFirst()
        state.value.segments[segment].stage = .leaving
        state.value.segments[segment].isOnFile = true
        let slice = slots(0..<shape.blocksPerSegment, of: state.value.segments[segment].buffer)
        let failure: BlockError?
        do throws(BlockError) {
            try await write(slice, to: file, range(of: segment, offset), isReadSoon)
            failure = nil
        } catch {
            failure = error
        }
        if state.value.segments[segment].held == 0 {
            letGoBuffer(of: segment)
            retire(segment)
            _ = await punchNext(file, at: offset)
        } else if failure == nil {
            letGoBuffer(of: segment)
            state.value.segments[segment].stage = .onFile
        } else {
            state.value.segments[segment].stage = .full
            state.value.full.insert(segment, at: 0)
        }
        if let failure { throw failure }
        return true
    }

    /// At least so many blocks go to the page cache at once: the fewest that the engine's thread does not write by itself. Much more
    /// takes longer, as the memory for it has to be found in one piece.
    private static let blocksAtOnce = 20

    private func write(
        _ segment: IOSlice, to file: any BlockDevice, _ range: ByteRange, _ isReadSoon: Bool
    ) async throws(BlockError) {
        if !isReadSoon, file.canWritePastCache { return try await file.writePastCache(range, from: segment) }
        let parts = max(1, shape.blocksPerSegment / Self.blocksAtOnce)
        let length = (shape.blocksPerSegment + parts - 1) / parts * Int(JobRecord.blockSize)
        for start in stride(from: 0, to: segment.count, by: length) {
            let end = min(start + length, segment.count)
            let part = ByteRange(range.offset + UInt64(start)..<range.offset + UInt64(end))
            try await file.write(part, from: segment[start..<end])
        }
    }

    /// Gives a segment that nobody needs back to `file`, which has them from `offset` on; false when there is none.
    func punchNext(_ file: any BlockDevice, at offset: UInt64) async -> Bool {
        guard let segment = state.value.unpunched.popLast() else { return false }
        // Only a favour to the file system: what stays goes with the file.
        try? await file.discard(range(of: segment, offset))
        state.value.segments[segment].isOnFile = false
        state.value.segments[segment].stage = .free
        state.value.free.append(segment)
        return true
    }

    /// After a restart: gives back what the agent before has left of segments that are free. What stays goes with the file.
    func punchFree(_ file: any BlockDevice, at offset: UInt64) async {
        var next = 0
        while next < shape.segments {
            let first = next
            while next < shape.segments, !isHeld(next) { next += 1 }
            if next > first {
                let (length, count) = (shape.segmentLength, UInt64(next - first))
                let part = ByteRange(offset: offset + UInt64(first) * length, length: count * length)
                // As above.
                try? await file.discard(part)
            }
            next += 1
        }
    }

    private func isHeld(_ segment: Int) -> Bool {
        segment < state.value.segments.count && state.value.segments[segment].held > 0
    }

    private func range(of segment: Int, _ offset: UInt64) -> ByteRange {
        ByteRange(offset: offset + UInt64(segment) * shape.segmentLength, length: shape.segmentLength)
    }
}
