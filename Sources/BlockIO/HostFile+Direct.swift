internal import CBlockIO
internal import Glibc
internal import Synchronization

/// Files that are read and written past the page cache (`cache=none`): all of their descriptor's transfers go between
/// memory and the disk, in multiples of `directUnit`.
///
/// What is not aligned goes through memory that is: a read takes what it lies in, a write changes a part of what it lies
/// in. So nothing that is asked for here goes through the page cache, and the two need not agree. (A file system may use it
/// by itself, as xfs does for parts of blocks that files share.)
extension HostFile {
    /// What is changed in a direct file at the moment, and who waits to change it.
    ///
    /// A write of a part of a unit reads the unit first: what others write to it meanwhile would be lost, so that it has
    /// its units for itself. First come, first served, where two want the same.
    struct DirectWrites: Sendable {
        struct Turn: Sendable {
            fileprivate let number: UInt64
            /// Whole units.
            let range: ByteRange
            let isAlone: Bool

            func excludes(_ other: Turn) -> Bool {
                (isAlone || other.isAlone) && range.overlaps(other.range)
            }
        }

        private var running: [Turn] = []
        private var waiting: [(turn: Turn, caller: UnsafeContinuation<Void, Never>)] = []
        private var next: UInt64 = 0

        mutating func newTurn(_ range: ByteRange, alone isAlone: Bool) -> Turn {
            next += 1
            return Turn(number: next, range: range, isAlone: isAlone)
        }

        /// False when the turn has to wait.
        mutating func begin(_ turn: Turn) -> Bool {
            guard !running.contains(where: turn.excludes),
                !waiting.contains(where: { turn.excludes($0.turn) })
            else { return false }
            running.append(turn)
            return true
        }

        mutating func wait(_ turn: Turn, _ caller: UnsafeContinuation<Void, Never>) {
            waiting.append((turn, caller))
        }

        /// Returns those whose turns have begun with that.
        mutating func end(_ turn: Turn) -> [UnsafeContinuation<Void, Never>] {
            if let index = running.firstIndex(where: { $0.number == turn.number }) {
                running.swapAt(index, running.count - 1)
                running.removeLast()
            }
            guard !waiting.isEmpty else { return [] }
            var begun: [UnsafeContinuation<Void, Never>] = []
            let candidates = waiting
            waiting = []
            for (turn, caller) in candidates {
                if begin(turn) { begun.append(caller) } else { wait(turn, caller) }
            }
            return begun
        }
    }

    /// The longest piece that goes through aligned memory at once, in bytes.
    private static let longestPiece: UInt64 = 256 << 10

    /// All transfers of the descriptor bypass the page cache from now on. Returns what they are multiples of, in bytes, a
    /// power of two. Throws `.unsupported`. Blocks.
    static func goDirect(_ descriptor: Int32, size: UInt64, name: String) throws(BlockError) -> UInt64 {
        var (offset, memory): (UInt32, UInt32) = (0, 0)
        let known = cblockio_direct_alignment(descriptor, &offset, &memory)
        // Where nothing is said of it, by older kernels and some file systems, whole pages go if anything does.
        if known == -ENODATA { (offset, memory) = (UInt32(IOBuffer.alignment), UInt32(IOBuffer.alignment)) }
        if known == 0, Int(offset) > IOBuffer.alignment || size % UInt64(offset) != 0 {
            // A file that has come to share blocks takes whole ones best, but its end was made for the disk's sectors.
            let sector = cblockio_sector_size(descriptor)
            if sector > 0, sector < offset { offset = sector }
        }
        let unit = max(offset, memory)
        guard known == 0 || known == -ENODATA, unit.nonzeroBitCount == 1, unit <= IOBuffer.alignment,
            cblockio_go_direct(descriptor) == 0, known == 0 || takesPages(descriptor)
        else {
            throw BlockError(
                .unsupported,
                "Couldn't use \(name) past the page cache: its file system or its disk does not take that (use it with "
                    + "cache=writeback)")
        }
        return UInt64(unit)
    }

    /// Whether a page of the file can be read, or there is none.
    private static func takesPages(_ descriptor: Int32) -> Bool {
        let page = IOBuffer(count: IOBuffer.alignment)
        // What else is wrong with it is not about direct transfers.
        return ![-Int64(EINVAL), -Int64(EOPNOTSUPP)].contains(
            cblockio_pread(descriptor, page.bytes.baseAddress, page.count, 0))
    }

    /// Waits until `range` may be changed, by nobody else if it is `alone` or not of whole units; nil where nobody waits for
    /// anybody.
    func beginDirectWrite(_ range: ByteRange, alone: Bool = false) async -> DirectWrites.Turn? {
        guard let directUnit, !range.isEmpty else { return nil }
        let whole = range.expanded(toMultipleOf: directUnit)
        let turn = state.value.directWrites.newTurn(whole, alone: alone || whole != range)
        guard !state.value.directWrites.begin(turn) else { return turn }
        await withUnsafeContinuation { state.value.directWrites.wait(turn, $0) }
        renewChange()
        return turn
    }

    /// The turn of a write of whole units; nil when somebody has to be waited for.
    func beginDirectWriteAtOnce(_ range: ByteRange) -> DirectWrites.Turn? {
        state.withState { state in
            let turn = state.directWrites.newTurn(range, alone: false)
            return !range.isEmpty && state.directWrites.begin(turn) ? turn : nil
        }
    }

    func endDirectWrite(_ turn: DirectWrites.Turn?) {
        guard let turn else { return }
        for caller in state.withState({ $0.directWrites.end(turn) }) { caller.resume() }
    }

    func isAligned(_ range: ByteRange, _ address: UnsafeRawPointer?, _ unit: UInt64) -> Bool {
        (range.offset | range.length | UInt64(UInt(bitPattern: address))) % unit == 0
    }

    /// Reads any range, in whole units. Throws as `read` does.
    func readAround(
        _ range: ByteRange, into bytes: UnsafeMutableRawBufferPointer, _ unit: UInt64
    ) async throws(BlockError) {
        var rest = range
        while !rest.isEmpty {
            let piece = rest.prefix(Self.longestPiece)
            let whole = piece.expanded(toMultipleOf: unit)
            let around = IOBuffer(count: Int(whole.length))
            let count = await readUnits(whole, into: around, unit)
            guard count >= 0 else { throw failure("read", range, count) }
            guard whole.offset + UInt64(count) >= piece.end else { throw hasBecomeShorter(range) }
            let start = Int(piece.offset - whole.offset)
            UnsafeMutableRawBufferPointer(rebasing: bytes[Int(piece.offset - range.offset)...]).copyMemory(
                from: UnsafeRawBufferPointer(around[start..<start + Int(piece.length)].bytes))
            rest = rest.dropFirst(piece.length)
        }
    }

    /// Writes the start of `bytes`, whatever its alignment: a count or a negated errno. Its turn has begun.
    func putDirectly(_ bytes: UnsafeRawBufferPointer, at offset: UInt64, _ unit: UInt64) async -> Int {
        let range = ByteRange(offset: offset, length: UInt64(bytes.count))
        renewChange()
        if isAligned(range, bytes.baseAddress, unit) {
            return await engine.write(descriptor, bytes, at: offset)
        }
        // Only the first and the last piece of a long one have parts of units.
        let piece = range.prefix(Self.longestPiece - range.offset % unit)
        let whole = piece.expanded(toMultipleOf: unit)
        let around = IOBuffer(count: Int(whole.length))
        // What the write leaves of its first and its last unit.
        let first = ByteRange(offset: whole.offset, length: unit)
        let last = ByteRange(offset: whole.end - unit, length: unit)
        var parts: [ByteRange] = piece.offset > first.offset ? [first] : []
        if piece.end < last.end, parts != [last] { parts.append(last) }
        for part in parts {
            let kept = IOBuffer(count: Int(unit))
            let count = await readUnits(part, into: kept, unit)
            guard count >= 0 else { return count }
            // Beyond the file's end there is nothing, which reads as zeroes.
            UnsafeMutableRawBufferPointer(rebasing: kept.bytes[count...]).initializeMemory(
                as: UInt8.self, repeating: 0)
            UnsafeMutableRawBufferPointer(rebasing: around.bytes[Int(part.offset - whole.offset)...])
                .copyMemory(
                    from: UnsafeRawBufferPointer(kept.bytes))
        }
        UnsafeMutableRawBufferPointer(rebasing: around.bytes[Int(piece.offset - whole.offset)...]).copyMemory(
            from: UnsafeRawBufferPointer(rebasing: bytes[..<Int(piece.length)]))
        renewChange()
        let result = await writeUnits(whole, from: around)
        guard result >= 0 else { return result }
        if whole.end > size {
            // The file ends with a whole unit now.
            state.value.needsFullFlush = true
            currentSize.max(whole.end, ordering: .acquiringAndReleasing)
        }
        return Int(piece.length)
    }

    /// As much of whole units as there is before the end of the file: a count or a negated errno.
    private func readUnits(_ range: ByteRange, into buffer: IOBuffer, _ unit: UInt64) async -> Int {
        var done = 0
        while done < Int(range.length) {
            let count = await engine.readDirectly(
                descriptor, UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[done...]),
                at: range.offset + UInt64(done))
            switch count {
            case 1...: done += count
            case 0: return done
            case Int(-EINTR), Int(-EAGAIN): continue
            default: return count
            }
            // What is read short of a whole unit ends the file.
            if UInt64(done) % unit != 0 { return done }
        }
        return done
    }

    /// Writes whole units: a count, of all of them, or a negated errno.
    private func writeUnits(_ range: ByteRange, from buffer: IOBuffer) async -> Int {
        var done = 0
        while done < Int(range.length) {
            let count = await engine.write(
                descriptor, UnsafeRawBufferPointer(rebasing: buffer.bytes[done...]),
                at: range.offset + UInt64(done))
            switch count {
            case 1...: done += count
            case Int(-EINTR), Int(-EAGAIN): continue
            // As in `transfer`.
            case 0: return Int(-EIO)
            default: return count
            }
        }
        return done
    }
}
