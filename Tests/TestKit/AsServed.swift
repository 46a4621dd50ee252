package import BlockIO

extension BlockDevice {
    /// Reads as the NBD server does: at once where that can be, else begun without a task, else by a task that waits.
    package func readAsServed(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        if !readAtOnce(range, into: buffer) { try await readLater(range, into: buffer) }
    }

    /// Writes as the NBD server does: at once where that can be, else begun without a task, else by a task that waits.
    package func writeAsServed(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        if writeAtOnce(range, from: buffer) { return }
        let end = await withUnsafeContinuation { (caller: UnsafeContinuation<BegunEnd, Never>) in
            if !beginWrite(range, from: buffer, { caller.resume(returning: $0) }) {
                caller.resume(returning: .unfinished)
            }
        }
        switch end {
        case .done: return
        case .unfinished: try await write(range, from: buffer)
        case .failed(let error): throw error
        }
    }
}
