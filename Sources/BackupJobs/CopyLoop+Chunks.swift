internal import BlockIO

/// What a chunk does, in its own task.
extension CopyLoop {
    /// From how many bytes on the target is to have a piece before the next one is read.
    private static let longPiece: UInt64 = 256 << 10
    /// How much is read before its digests are made, in bytes: blocks that a processor's own cache has room for.
    private static let digestedAtOnce = 256 << 10

    func writeZeroes(_ range: ByteRange) async -> BackupFailure? {
        if isEnding { return .cancelled }
        return await requests.perform { [writer] in await writer.writeZeroes(range) }
    }

    private var writer: PieceWriter {
        PieceWriter(
            target: target, zeroUnit: zeroUnit, skipsZeroes: targetReadsAsZero,
            clusterSize: clusterSize,
            policy: options.onTargetError, clock: clock
        ) { [state, point] failure in
            // On the drive's engine, as all that is asked of the target is.
            state.value.lacking.append(point.blocks(of: failure.range))
            point.state.value.tell(failure, .ignore)
        }
    }

    func copy(_ range: ByteRange) async -> BackupFailure? {
        var rest = range
        while !rest.isEmpty {
            let piece = rest.prefix(pieceSize)
            if let failure = await copyPiece(piece) { return failure }
            rest = rest.dropFirst(piece.length)
        }
        return nil
    }

    private func copyPiece(_ piece: ByteRange) async -> BackupFailure? {
        // Only a cancelled task is not given a buffer.
        guard let buffer = try? await buffers.take() else { return .cancelled }
        let slice = buffer[0..<Int(piece.length)]
        var digests = point.record.isCloned ? nil : sums?.digests(of: piece)
        let failure = isEnding ? .cancelled : await readAsItWas(piece, into: slice, &digests)
        if let failure = failure ?? (isEnding ? .cancelled : nil) {
            buffers.give(buffer)
            return failure
        }
        // From here on the buffer belongs to the request, which may outlive the chunk.
        // Short pieces are for the target to take together.
        let givesWay = state.value.stepLength == .max && piece.length >= Self.longPiece
        return await requests.perform(givingWay: givesWay) { [buffers, writer, digests] in
            defer { buffers.give(buffer) }
            // While the target writes.
            async let noted = note(piece, slice, digests)
            let failure = await writer.write(piece, from: slice)
            // Before the clusters are done: what counts as done has its digests.
            return await noted ?? failure
        }
    }

    private func note(_ piece: ByteRange, _ slice: IOSlice, _ digests: PieceDigests?) async -> BackupFailure?
    {
        guard let sums, let digests else { return nil }
        do throws(BlockError) {
            try await point.using { () async throws(BlockError) in try await sums.note(digests, of: slice) }
            return nil
        } catch {
            return .failed(IOFailure(.staging, .write, piece, error))
        }
    }

    /// Reads the drive as it is, then lays over it what was saved before the read ended: together they are the point in
    /// time (DATAPATH.md, "The copy of a cluster").
    private func readAsItWas(
        _ piece: ByteRange, into slice: IOSlice, _ digests: inout PieceDigests?
    ) async -> BackupFailure? {
        do throws(BlockError) {
            var done = 0
            while done < slice.count {
                // A guest that waits for one answer at a time notices every long step, the first one, too.
                if done > 0 || state.value.stepLength != .max {
                    await letGuestIn()
                    if isEnding { return .cancelled }
                }
                // Without a bound while the guest is idle, which it may have become in the midst of a piece.
                let end = done + Int(min(state.value.stepLength, UInt64(slice.count - done)))
                try await read(piece, into: slice, done..<end, &digests)
                done = end
            }
        } catch {
            digests?.forget()
            return await readSingly(piece, into: slice, error)
        }
        return await layOver(piece, slice)
    }

    /// Reads the bytes `part` of a piece. What the page cache has is read in parts that are in the processor's cache while
    /// their digests are made; the rest together, as the disk is quicker that way.
    private func read(
        _ piece: ByteRange, into slice: IOSlice, _ part: Range<Int>, _ digests: inout PieceDigests?
    ) async throws(BlockError) {
        var done = part.lowerBound
        while done < part.upperBound {
            let next = done..<min(done + Self.digestedAtOnce, part.upperBound)
            let isThere = source.readAtOnce(piece.part(next), into: slice[next])
            state.withState { $0.partsInMemory = isThere ? min($0.partsInMemory + 1, State.manyParts) : 0 }
            guard isThere else {
                let rest = done..<part.upperBound
                return try await source.readLater(piece.part(rest), into: slice[rest])
            }
            // What nobody has overwritten by now is as it was, though it be overwritten later; where something is laid over, the
            // digests are of that. (A block that comes to be missing has no digest that counts.)
            if !point.isTouched(piece) { digests?.makeQuickly(upTo: next.upperBound, of: slice) }
            done = next.upperBound
        }
    }

    /// In this step, after the last read ended, it is decided which blocks are whose.
    private func layOver(_ piece: ByteRange, _ slice: IOSlice) async -> BackupFailure? {
        let blocks = point.blocks(of: piece)
        let saved = point.record.bits.saved.runs(in: blocks)
        for run in point.record.bits.missing.runs(in: blocks) {
            part(run, of: piece, slice).bytes.initializeMemory(as: UInt8.self, repeating: 0)
            for block in run where !point.record.bits.saved.isSet(block) {
                state.value.lacking.append(block..<block + 1)
            }
        }
        guard !saved.isEmpty else { return nil }
        point.beginUse()
        defer { point.endUse() }
        for run in saved {
            let range = point.bytes(ofBlocks: run)
            do throws(BlockError) {
                try await point.readSaved(range, into: part(run, of: piece, slice))
            } catch {
                return .failed(IOFailure(.staging, .read, range, error))
            }
        }
        return nil
    }

    /// Whatever the guest has sent has its turn; how much that was says how many requests it has on their way.
    private func letGuestIn() async {
        let before = point.drive.activity.requests
        let turns = await source.engine.letOthersIn()
        let requests = (point.drive.activity.requests &- before) / UInt64(turns)
        state.withState { $0.requestsPerTurn = max(requests, $0.requestsPerTurn / 2) }
    }

    /// Part of the drive cannot be read: block by block what was saved does not need to be, and the rest is missing, after a
    /// few more tries, or the failure, as the policy says (DATAPATH.md rule 5).
    private func readSingly(_ piece: ByteRange, into slice: IOSlice, _ first: BlockError) async
        -> BackupFailure?
    {
        var failed = point.blocks(of: piece).map { (block: $0, error: first) }
        for pause in [.zero] + (options.ignoresSourceErrors ? ErrorPolicy.pauses : []) {
            // Only a run that ends is not allowed to sleep.
            if pause > .zero, (try? await clock.sleep(pause)) == nil || isEnding { return .cancelled }
            var still: [(block: Int, error: BlockError)] = []
            for (block, _) in failed {
                let range = point.bytes(ofBlocks: block..<block + 1)
                do throws(BlockError) {
                    try await source.read(range, into: part(block..<block + 1, of: piece, slice))
                } catch {
                    // Whoever is saving it may have been luckier, or has found the same.
                    await point.waitUntilNotSaving(block)
                    if isSettled(block) { continue }
                    guard options.ignoresSourceErrors else {
                        return .failed(IOFailure(.source, .read, range, error))
                    }
                    still.append((block, error))
                }
            }
            failed = still
            if failed.isEmpty { return await layOver(piece, slice) }
        }
        if let failure = await miss(failed) { return failure }
        return await layOver(piece, slice)
    }

    private func isSettled(_ block: Int) -> Bool {
        point.record.bits.saved.isSet(block) || point.record.bits.missing.isSet(block)
    }

    /// Goes on without blocks that cannot be read.
    private func miss(_ failed: [(block: Int, error: BlockError)]) async -> BackupFailure? {
        var runs: [(blocks: Range<Int>, error: BlockError)] = []
        for (block, error) in failed {
            await point.waitUntilNotSaving(block)
            // In the same step as the record says so.
            if isSettled(block) { continue }
            do throws(BlockError) { try point.noteMissing(block..<block + 1) } catch {
                return .failed(IOFailure(.staging, .write, point.bytes(ofBlocks: block..<block + 1), error))
            }
            if let last = runs.last, last.blocks.upperBound == block, last.error.errno == error.errno {
                runs[runs.count - 1].blocks = last.blocks.lowerBound..<block + 1
            } else {
                runs.append((block..<block + 1, error))
            }
        }
        for (blocks, error) in runs {
            point.state.value.tell(IOFailure(.source, .read, point.bytes(ofBlocks: blocks), error), .ignore)
        }
        return nil
    }

    private func part(_ blocks: Range<Int>, of piece: ByteRange, _ slice: IOSlice) -> IOSlice {
        let range = point.bytes(ofBlocks: blocks)
        return slice[Int(range.offset - piece.offset)..<Int(range.end - piece.offset)]
    }
}

extension ByteRange {
    /// The range of these of its own bytes.
    fileprivate func part(_ bytes: Range<Int>) -> ByteRange {
        dropFirst(UInt64(bytes.lowerBound)).prefix(UInt64(bytes.count))
    }
}
