internal import BlockIO

/// Writes what was read into one buffer, and leaves out the zeroes.
struct PieceWriter: Sendable {
    let target: any BackupTarget
    /// The unit in which zeroes are looked for, in bytes.
    let zeroUnit: Int
    /// Zeroes need not be written since the target reads as zero there.
    let skipsZeroes: Bool

    /// Writes `bytes`, the content of `piece`, one run of data or zeroes after the other. Ends early when its task is
    /// cancelled: then nobody asks for the result.
    func write(_ piece: ByteRange, from bytes: IOSlice) async -> BackupFailure? {
        var start = 0
        while start < bytes.count {
            if Task.isCancelled { return .cancelled }
            let (isZero, end) = run(of: bytes, from: start)
            let range = ByteRange(offset: piece.offset + UInt64(start), length: UInt64(end - start))
            do throws(BlockError) {
                if !isZero {
                    try await target.write(range, from: bytes[start..<end])
                } else if !skipsZeroes {
                    try await target.writeZeroes(range)
                }
            } catch {
                return .failed(IOFailure(.target, isZero ? .writeZeroes : .write, range, error))
            }
            start = end
        }
        return nil
    }

    /// Whether the unit at `start` is all zero, and the end of the run of units that are alike.
    private func run(of bytes: IOSlice, from start: Int) -> (isZero: Bool, end: Int) {
        let bytes = bytes.bytes
        var end = min(start + zeroUnit, bytes.count)
        let isZero = ZeroDetection.isZero(UnsafeRawBufferPointer(rebasing: bytes[start..<end]))
        while end < bytes.count {
            let next = min(end + zeroUnit, bytes.count)
            guard ZeroDetection.isZero(UnsafeRawBufferPointer(rebasing: bytes[end..<next])) == isZero else {
                break
            }
            end = next
        }
        return (isZero, end)
    }
}
