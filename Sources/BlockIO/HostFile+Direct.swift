internal import CBlockIO
internal import Glibc
internal import Synchronization

/// Files that are read and written past the page cache (`cache=none`): all of their descriptor's transfers go between
/// memory and the disk, in multiples of `directUnit`.
///
/// What is not aligned goes through memory that is: a read takes what it lies in, a write changes a part of what it lies
/// in. Nothing of such a file ever goes through the page cache, so that the two need not agree about it.
extension HostFile {
    /// Writes on their way to a direct file.
    ///
    /// A write of a part of a unit reads the unit first: what others write to it meanwhile would be lost, so that it has
    /// its units for itself.
    struct DirectWrites: Sendable {
        struct Turn: Sendable {
            let number: UInt64
            /// Whole units.
            let range: ByteRange
            let isAlone: Bool
        }

        var running: [Turn] = []
        var waiting: [UnsafeContinuation<Void, Never>] = []
        var next: UInt64 = 0

        func mayBegin(_ range: ByteRange, alone: Bool) -> Bool {
            !running.contains { ($0.isAlone || alone) && $0.range.overlaps(range) }
        }
    }

    /// The longest piece that goes through aligned memory at once, in bytes.
    private static let longestPiece: UInt64 = 256 << 10

    /// Waits until `range` may be changed; nil where nobody has to wait for anybody.
    func beginDirectWrite(_ range: ByteRange) async -> DirectWrites.Turn? {
        guard let directUnit, !range.isEmpty else { return nil }
        let whole = range.expanded(toMultipleOf: directUnit)
        let isAlone = whole != range
        while !state.value.directWrites.mayBegin(whole, alone: isAlone) {
            await withUnsafeContinuation { state.value.directWrites.waiting.append($0) }
        }
        return state.withState { state in
            let turn = DirectWrites.Turn(number: state.directWrites.next, range: whole, isAlone: isAlone)
            state.directWrites.next += 1
            state.directWrites.running.append(turn)
            return turn
        }
    }

    func endDirectWrite(_ turn: DirectWrites.Turn?) {
        guard let turn else { return }
        let waiting = state.withState { state in
            if let index = state.directWrites.running.firstIndex(where: { $0.number == turn.number }) {
                state.directWrites.running.swapAt(index, state.directWrites.running.count - 1)
                state.directWrites.running.removeLast()
            }
            defer { state.directWrites.waiting = [] }
            return state.directWrites.waiting
        }
        for one in waiting { one.resume() }
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
        if isAligned(range, bytes.baseAddress, unit) {
            return await engine.write(descriptor, bytes, at: offset)
        }
        let piece = range.prefix(Self.longestPiece)
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
