internal import BlockIO

/// Saving in one step: most of what guests write is short, and the old content of it in the page cache. The order is that of
/// `save`: old content read, written to staging, bit set; and whatever cannot be done at once is left to `save`.
extension PointInTime {
    /// Whether nothing of `range` is to be saved any more, after what can be saved in this step.
    func saveAtOnce(_ range: ByteRange) -> Bool {
        let touched = blocks(of: range)
        var next = touched.lowerBound
        while next < touched.upperBound {
            let cluster = next / blocksPerCluster
            let end = min(touched.upperBound, (cluster + 1) * blocksPerCluster)
            if isProtected(cluster) {
                if options.sync == .top, !record.bits.needKnown.isSet(cluster) { return false }
                while let first = firstUnsettled(in: next..<end) {
                    let last = (first..<end).first(where: isSettled) ?? end
                    guard copyOutAtOnce(first..<last) else { return false }
                    next = last
                }
            }
            next = end
        }
        return true
    }

    /// Whether what is at `offset` is saved will be asked soon, and the answer is in no cache.
    func fetch(_ offset: UInt64) { record.bits.saved.fetch(Int(offset / JobRecord.blockSize)) }

    private func copyOutAtOnce(_ blocks: Range<Int>) -> Bool {
        let range = bytes(ofBlocks: blocks)
        guard staging.room >= UInt64(blocks.count) * JobRecord.blockSize,
            !state.value.saves.contains(where: { $0.blocks.overlaps(blocks) }),
            // An error is met again by `save`, which tells it.
            (try? reserve(&record.bits.saved, blocks)) != nil, copyOutAtOnce(range)
        else { return false }
        noteSaved(blocks)
        warnIfNearlyFull()
        return true
    }

    private func copyOutAtOnce(_ range: ByteRange) -> Bool {
        let inLog = staging.saveInLog(range) { drive.device.readAtOnce(range, into: $0) }
        if let inLog { return inLog }
        guard let buffer = drive.buffers.takeIfAvailable(range.length) else { return false }
        defer { drive.buffers.give(buffer) }
        let slice = buffer[0..<Int(range.length)]
        return drive.device.readAtOnce(range, into: slice) && staging.saveAtOnce(range, from: slice)
    }
}
