internal import CBlockIO
internal import Glibc
internal import Synchronization

extension HostFile {
    /// Fails, and goes on failing, once the kernel reported that written data was lost.
    ///
    /// One flush is on its way at a time: the kernel tells of lost data once per descriptor, so that of two flushes at
    /// once the one that began first could succeed although its data is lost. Callers that come meanwhile share the
    /// next one, which begins when this one has ended, and its result.
    package func flush() async throws(BlockError) {
        if let lost = state.value.lostData { throw laterFailure(lost) }
        guard !isReadOnly else { return }
        if state.value.flushing.isRunning {
            let turn = await withCheckedContinuation { state.value.flushing.waiting.append($0) }
            if case .shares(let failure) = turn {
                if let failure { throw failure }
                return
            }
        }
        // Ours is the next one: those who waited with us share it, who comes from now on waits for the one after it.
        state.value.flushing.isRunning = true
        let sharers = state.value.flushing.takeWaiting()
        var failure: BlockError?
        do throws(BlockError) { try await synchronizeAll() } catch { failure = error }
        for sharer in sharers { sharer.resume(returning: .shares(failure)) }
        state.value.flushing.handOn()
        if let failure { throw failure }
    }

    private func synchronizeAll() async throws(BlockError) {
        if let lost = state.value.lostData { throw laterFailure(lost) }
        let dataOnly = !state.value.needsFullFlush
        state.value.needsFullFlush = false
        while true {
            let result = await engine.synchronize(descriptor, dataOnly: dataOnly)
            // An interrupted flush may have consumed an error report: only EAGAIN, which did nothing, is repeated.
            if result == Int(-EAGAIN) { continue }
            guard result == 0 else { throw lose("Couldn't flush \(name)", result) }
            break
        }
        // A write-back may have failed while this was on its way, and have taken the report for itself.
        if let lost = state.value.lostData { throw laterFailure(lost) }
    }

    /// The flush that is on its way and who waits for the next one.
    struct Flushing: Sendable {
        enum Turn: Sendable {
            /// The one who waited makes the next flush.
            case leads
            /// It was made for it, and failed or not.
            case shares(BlockError?)
        }

        var isRunning = false
        var waiting: [CheckedContinuation<Turn, Never>] = []

        mutating func takeWaiting() -> [CheckedContinuation<Turn, Never>] {
            defer { waiting = [] }
            return waiting
        }

        /// The first one who waits makes the next flush; until it does, it counts as running.
        mutating func handOn() {
            if waiting.isEmpty { isRunning = false } else { waiting.removeFirst().resume(returning: .leads) }
        }
    }

    /// Starts to write the dirty data of `range` to the disk without waiting for it.
    ///
    /// An error, here and in `waitForWriteback`, counts as one of a flush: no later flush succeeds.
    package func startWriteback(_ range: ByteRange) async throws(BlockError) {
        try await synchronize(range, cblockio_range_start_write, "Couldn't write back \(range) of \(name)")
    }

    /// Waits until the data of `range` that was written before has reached the disk (not its cache: only `flush` does
    /// that, and only `flush` writes the metadata that finds it).
    package func waitForWriteback(_ range: ByteRange) async throws(BlockError) {
        try await synchronize(range, cblockio_range_write_and_wait, "Couldn't write back \(range) of \(name)")
    }

    /// How many pages of `range` have not reached the disk; nil where the system does not tell (before Linux 6.5), or write-back cannot be
    /// started. Unlike `waitForWriteback` it leaves an error for whoever asks later, in another process maybe.
    package func unwrittenPages(_ range: ByteRange) -> Int? {
        guard state.value.canSynchronizeRange, !range.isEmpty else { return nil }
        let pages = cblockio_unwritten_pages(descriptor, range.offset, range.length)
        return pages < 0 ? nil : Int(pages)
    }

    /// To wait for nothing, behind the file's last page, tells what all of it has met (sync_file_range(2)).
    package func writebackFailure() -> BlockError? {
        let behind = size.roundedUp(toMultipleOf: 65536)
        let result = cblockio_sync_file_range(descriptor, behind, 65536, cblockio_range_wait)
        switch result {
        case 0, -EINTR, -ENOSYS, -EOPNOTSUPP, -EINVAL, -ESPIPE: return nil
        default: return lose("Couldn't write back what was written to \(name)", Int(result))
        }
    }

    private func synchronize(_ range: ByteRange, _ flags: UInt32, _ what: String) async throws(BlockError) {
        if let lost = state.value.lostData { throw laterFailure(lost) }
        // A length of 0 would mean "to the end" to the kernel.
        guard !range.isEmpty, !isReadOnly, state.value.canSynchronizeRange else { return }
        while true {
            let result = await engine.synchronizeRange(descriptor, range, flags: flags)
            switch result {
            case 0: return
            case Int(-EINTR), Int(-EAGAIN): continue
            // Only a matter of pace: the flush at the end does without.
            case Int(-ENOSYS), Int(-EOPNOTSUPP), Int(-EINVAL), Int(-ESPIPE):
                state.value.canSynchronizeRange = false
                return
            default: throw lose(what, result, range)
            }
        }
    }

    private func lose(_ what: String, _ result: Int, _ range: ByteRange? = nil) -> BlockError {
        var error = BlockError(what, errno: Int32(truncatingIfNeeded: -result), range: range)
        // Whatever the cause, it is not the same as a write that failed: that one can be tried again.
        error.code = .dataLost
        if state.value.lostData == nil { state.value.lostData = error }
        return error
    }

    private func laterFailure(_ first: BlockError) -> BlockError {
        BlockError(
            first.code, "Couldn't flush \(name): a previous flush failed (\(first.message))",
            errno: first.errno)
    }
}
