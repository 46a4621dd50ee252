internal import CBlockIO
internal import Glibc
internal import Synchronization

extension HostFile {
    /// Fails, and goes on failing, once the kernel reported that written data was lost.
    package func flush() async throws(BlockError) {
        if let lost = state.value.lostData { throw laterFailure(lost) }
        guard !isReadOnly else { return }
        let dataOnly = !state.value.needsFullFlush
        state.value.needsFullFlush = false
        while true {
            let result = await engine.synchronize(descriptor, dataOnly: dataOnly)
            // An interrupted flush may have consumed an error report: only EAGAIN, which did nothing, is repeated.
            if result == Int(-EAGAIN) { continue }
            guard result == 0 else { throw lose("Couldn't flush \(name)", result) }
            break
        }
        // Another flush may have failed while this one was on its way, and have taken the report for itself.
        if let lost = state.value.lostData { throw laterFailure(lost) }
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
        let error = BlockError(what, errno: Int32(truncatingIfNeeded: -result), range: range)
        if state.value.lostData == nil { state.value.lostData = error }
        return error
    }

    private func laterFailure(_ first: BlockError) -> BlockError {
        BlockError(
            first.code, "Couldn't flush \(name): a previous flush failed (\(first.message))",
            errno: first.errno)
    }
}
