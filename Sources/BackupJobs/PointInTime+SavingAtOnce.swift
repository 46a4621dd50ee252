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

    /// Saves what short writes that have come together overwrite: all of it is read, and noted, one behind the other. Each write
    /// by itself takes a sixth longer, as what the thread needs for one is in no cache any more when it comes to the next.
    func saveAtOnce(together ranges: [ByteRange]) {
        guard !ranges.isEmpty, state.value.saves.isEmpty else { return }
        for range in ranges where range.end <= drive.size {
            record.bits.saved.fetch(Int(range.offset / JobRecord.blockSize))
        }
        var toSave: [Int] = []
        toSave.reserveCapacity(ranges.count)
        for range in ranges {
            guard let block = wholeBlock(of: range), isToSaveAtOnce(block), !toSave.contains(block) else {
                continue
            }
            toSave.append(block)
        }
        guard staging.room >= UInt64(toSave.count) * JobRecord.blockSize else { return }
        let count = staging.saveInLog(toSave) { block, memory in
            drive.device.readAtOnce(bytes(ofBlocks: block..<block + 1), into: memory)
        }
        guard count > 0 else { return }
        for block in toSave.prefix(count) { setSaved(block..<block + 1) }
        haveSaved()
        warnIfNearlyFull()
    }

    /// The only block that `range` touches; nil where there are more, or that of the drive's end is none.
    private func wholeBlock(of range: ByteRange) -> Int? {
        let blocks = blocks(of: range)
        return blocks.count == 1 && UInt64(blocks.upperBound) * JobRecord.blockSize <= drive.size
            ? blocks.lowerBound : nil
    }

    private func isToSaveAtOnce(_ block: Int) -> Bool {
        let cluster = block / blocksPerCluster
        return isProtected(cluster) && (options.sync != .top || record.bits.needKnown.isSet(cluster))
            && !isSettled(block)
            // As below.
            && (try? reserve(&record.bits.saved, block..<block + 1)) != nil
    }

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
