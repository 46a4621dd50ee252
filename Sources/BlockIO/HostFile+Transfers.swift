internal import CBlockIO
internal import Glibc
internal import Synchronization

extension HostFile {
    /// Zeroes to write where a file system has no better way; never written to.
    private static let zeroes: IOBuffer = {
        let buffer = IOBuffer(count: 256 << 10)
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0)
        return buffer
    }()

    package func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        precondition(UInt64(buffer.count) == range.length, "a buffer is as long as its range")
        try check(range, to: "read")
        // Copies of `buffer` keep the memory alive over the awaits.
        let bytes = buffer.bytes
        if let directUnit, !isAligned(range, bytes.baseAddress, directUnit) {
            return try await readAround(range, into: bytes, directUnit)
        }
        var done = 0
        while done < bytes.count {
            let (rest, offset) = (
                UnsafeMutableRawBufferPointer(rebasing: bytes[done...]), range.offset + UInt64(done)
            )
            let count =
                directUnit == nil
                ? await engine.read(descriptor, rest, at: offset)
                : await engine.readDirectly(descriptor, rest, at: offset)
            switch count {
            case 1...: done += count
            case 0: throw hasBecomeShorter(range)
            case Int(-EINTR), Int(-EAGAIN): continue
            default: throw failure("read", range, count)
            }
        }
        withExtendedLifetime(buffer) {}
    }

    package func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool {
        directUnit == nil && range.end <= size
            && engine.readAtOnce(descriptor, buffer.bytes, at: range.offset) == buffer.count
    }

    package var fillsPipes: Bool { directUnit == nil && PagePipe.suits(descriptor) }

    package func hasCached(_ range: ByteRange) -> Bool {
        directUnit == nil && range.end <= size && engine.hasCached(descriptor, range)
    }

    package func fill(_ pipe: PagePipe, with range: ByteRange) -> Bool {
        range.end <= size && fillsPipes && engine.fill(pipe, from: descriptor, range)
    }

    package func beginRead(
        _ range: ByteRange, into buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        let bytes = buffer.bytes
        guard range.end <= size, directUnit.map({ isAligned(range, bytes.baseAddress, $0) }) ?? true else {
            return false
        }
        // The closure keeps the memory alive until the kernel has filled it.
        return engine.beginRead(descriptor, bytes, at: range.offset, past: directUnit != nil) { count in
            done(self.end(of: "read", range, count))
        }
    }

    /// Past the page cache only, where nobody else has to be waited for: what the cache takes, `writeAtOnce` writes.
    package func beginWrite(
        _ range: ByteRange, from buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        let bytes = UnsafeRawBufferPointer(buffer.bytes)
        guard let directUnit, !isReadOnly, range.end <= size, isAligned(range, bytes.baseAddress, directUnit),
            let turn = beginDirectWriteAtOnce(range)
        else { return false }
        beginChange()
        // The closure keeps the memory alive until the kernel has read it.
        let hasBegun = engine.beginWrite(descriptor, bytes, at: range.offset) { count in
            self.endDirectWrite(turn)
            self.endChange()
            done(self.end(of: "write", range, count))
        }
        if !hasBegun {
            endDirectWrite(turn)
            endChange()
        }
        return hasBegun
    }

    package func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        guard isLocal, directUnit == nil, !isReadOnly, range.end <= size, !mayHold else { return false }
        beginChange()
        defer { endChange() }
        let bytes = UnsafeRawBufferPointer(buffer.bytes)
        return engine.writeAtOnce(descriptor, bytes, at: range.offset) == buffer.count
    }

    package func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await write(range, from: buffer, past: false)
    }

    package func writePastCache(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await write(range, from: buffer, past: true)
    }

    private func write(_ range: ByteRange, from buffer: IOSlice, past: Bool) async throws(BlockError) {
        precondition(UInt64(buffer.count) == range.length, "a buffer is as long as its range")
        try checkWritable(range, to: "write")
        beginChange()
        defer { endChange() }
        try await transfer(range, from: buffer, verb: "write", past: past)
        noteEnd(range.end)
    }

    package func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        try checkWritable(range, to: "write zeroes to")
        guard !range.isEmpty else { return }
        beginChange()
        defer { endChange() }
        if isBlockDevice || directUnit != nil {
            // Devices take whole blocks only; 4 KiB suits all of them. Parts of blocks would go through the page cache.
            let start = min(range.offset.roundedUp(toMultipleOf: 4096), range.end)
            let end = max(start, range.end.roundedDown(toMultipleOf: 4096))
            try await fillWithZeroes(ByteRange(range.offset..<start))
            try await zeroWhole(ByteRange(start..<end), mayUnmap: mayUnmap)
            try await fillWithZeroes(ByteRange(end..<range.end))
        } else {
            try await zeroWhole(range, mayUnmap: mayUnmap)
        }
        noteEnd(range.end)
    }

    /// As far as the file system has shown; a block device may write each of them.
    package func zeroesQuickly(mayUnmap: Bool) -> Bool {
        !isBlockDevice && (state.value.canZeroRange || mayUnmap && state.value.canPunchHoles)
    }

    package func discard(_ range: ByteRange) async throws(BlockError) {
        guard !isReadOnly else { throw readOnlyError("discard", range) }
        try check(range, to: "discard")
        var whole = range
        if isBlockDevice || directUnit != nil {
            let start = min(range.offset.roundedUp(toMultipleOf: 4096), range.end)
            whole = ByteRange(start..<max(start, range.end.roundedDown(toMultipleOf: 4096)))
        }
        guard !whole.isEmpty, state.value.canPunchHoles else { return }
        beginChange()
        defer { endChange() }
        let result = await allocate(cblockio_punch_hole | cblockio_keep_size, whole)
        switch result {
        case 0: return
        // To give space back is a favour: what cannot be done is not an error.
        case Int(-EOPNOTSUPP), Int(-ENOSYS), Int(-EINVAL): state.value.canPunchHoles = false
        default: throw failure("discard", range, result)
        }
    }

    /// What has become of a transfer of all of `range`, which moved so many bytes or returned a negated errno.
    private func end(of verb: String, _ range: ByteRange, _ count: Int) -> BegunEnd {
        switch count {
        case Int(range.length): .done
        case 0..., Int(-EINTR), Int(-EAGAIN): .unfinished
        default: .failed(failure(verb, range, count))
        }
    }

    // MARK: Parts

    private func transfer(
        _ range: ByteRange, from buffer: IOSlice, verb: String, past: Bool = false
    ) async throws(BlockError) {
        let bytes = UnsafeRawBufferPointer(buffer.bytes)
        let turn = await beginDirectWrite(range)
        defer { endDirectWrite(turn) }
        var done = 0
        while done < bytes.count {
            let (rest, offset) = (
                UnsafeRawBufferPointer(rebasing: bytes[done...]), range.offset + UInt64(done)
            )
            let count = await put(rest, at: offset, past: past)
            switch count {
            case 1...: done += count
            case Int(-EINTR), Int(-EAGAIN): continue
            // No system does this for a file; to go on would be to loop for ever.
            case 0: throw failure(verb, range, Int(-EIO))
            default: throw failure(verb, range, count)
            }
        }
        withExtendedLifetime(buffer) {}
    }

    private func put(_ bytes: UnsafeRawBufferPointer, at offset: UInt64, past: Bool) async -> Int {
        if let directUnit { return await putDirectly(bytes, at: offset, directUnit) }
        let range = ByteRange(offset: offset, length: UInt64(bytes.count))
        let direct = directLength(range, bytes.baseAddress, past: past)
        if direct > 0,
            let count = await writeDirectly(
                UnsafeRawBufferPointer(rebasing: bytes[..<Int(direct)]), at: offset)
        {
            return count
        }
        return isLocal && !mayHold
            ? await engine.writeQuickly(descriptor, bytes, at: offset)
            : await engine.write(descriptor, bytes, at: offset)
    }

    /// The best of what the file system can: a hole, unwritten blocks, or zeroes.
    private func zeroWhole(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        guard !range.isEmpty else { return }
        if mayUnmap && state.value.canPunchHoles {
            if range.end > size {
                // A hole does not make a file longer; a last byte does, whatever else is written meanwhile.
                try await fillWithZeroes(ByteRange(range.end - 1..<range.end))
            }
            let result = await allocate(cblockio_punch_hole | cblockio_keep_size, range)
            if result == 0 { return }
            guard isUnsupported(result) else { throw failure("write zeroes to", range, result) }
            state.value.canPunchHoles = false
        }
        if state.value.canZeroRange {
            let keepSize = isBlockDevice ? cblockio_keep_size : 0
            let result = await allocate(cblockio_zero_range | keepSize, range)
            if result == 0 { return }
            guard isUnsupported(result) else { throw failure("write zeroes to", range, result) }
            state.value.canZeroRange = false
        }
        try await fillWithZeroes(range)
    }

    private func allocate(_ mode: Int32, _ range: ByteRange) async -> Int {
        let turn = await beginDirectWrite(range)
        defer { endDirectWrite(turn) }
        while true {
            let result = await engine.allocate(descriptor, mode: mode, range)
            if result != Int(-EINTR) && result != Int(-EAGAIN) { return result }
        }
    }

    private func isUnsupported(_ result: Int) -> Bool {
        result == Int(-EOPNOTSUPP) || result == Int(-ENOSYS) || result == Int(-EINVAL)
            || result == Int(-ENODEV)
    }

    private func fillWithZeroes(_ range: ByteRange) async throws(BlockError) {
        var rest = range
        while !rest.isEmpty {
            let piece = rest.prefix(UInt64(Self.zeroes.count))
            try await transfer(
                piece, from: Self.zeroes[0..<Int(piece.length)], verb: "write zeroes to")
            rest = rest.dropFirst(piece.length)
        }
    }

    private func checkWritable(_ range: ByteRange, to verb: String) throws(BlockError) {
        guard !isReadOnly else { throw readOnlyError(verb, range) }
        if !isGrowable {
            try check(range, to: verb)
        } else if range.end > UInt64(Int64.max) {
            throw BlockError(
                .invalid, "Couldn't \(verb) \(range) of \(name): no file is that long", range: range)
        }
    }

    /// Notes that the file reaches to `end` now.
    private func noteEnd(_ end: UInt64) {
        guard isGrowable, end > size else { return }
        state.value.needsFullFlush = true
        currentSize.max(end, ordering: .acquiringAndReleasing)
    }

    private func readOnlyError(_ verb: String, _ range: ByteRange) -> BlockError {
        BlockError(
            .invalid, "Couldn't \(verb) \(range) of \(name): it is open for reading only", range: range)
    }

    func hasBecomeShorter(_ range: ByteRange) -> BlockError {
        BlockError(
            .inputOutput,
            "Couldn't read \(range) of \(name): it has become shorter than the \(size) bytes it had",
            range: range)
    }

    func failure(_ verb: String, _ range: ByteRange, _ result: Int) -> BlockError {
        BlockError(
            "Couldn't \(verb) \(range) of \(name)", errno: Int32(truncatingIfNeeded: -result), range: range)
    }
}
