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

    /// Saves the old content of each block that one of these writes lies in, as far as the page cache has it: what is read, and what
    /// is noted, one behind the other, as what the thread needs for the one is in no cache any more when it has done the other.
    func saveAtOnce(together ranges: [ByteRange]) {
        // That of the drive's end may be shorter.
        let whole = Int(drive.size / JobRecord.blockSize)
        var toSave: [Int] = []
        toSave.reserveCapacity(ranges.count)
        for range in ranges where !range.isEmpty && range.end <= drive.size {
            let blocks = blocks(of: range)
            guard blocks.count == 1, blocks.lowerBound < whole else { continue }
            record.bits.saved.fetch(blocks.lowerBound)
            toSave.append(blocks.lowerBound)
        }
        toSave.removeAll { !canSaveAtOnce($0) }
        guard !toSave.isEmpty, staging.room >= UInt64(toSave.count) * JobRecord.blockSize else { return }
        let saved = staging.saveSingly(toSave) { block, memory in
            drive.device.readAtOnce(bytes(ofBlocks: block..<block + 1), into: memory)
        }
        guard !saved.isEmpty else { return }
        for block in saved { setSaved(block..<block + 1) }
        haveSaved()
        warnIfNearlyFull()
    }

    /// Whether the block is to be saved, and nobody is at it; then there is space for its bit.
    private func canSaveAtOnce(_ block: Int) -> Bool {
        let cluster = block / blocksPerCluster
        return isProtected(cluster) && (options.sync != .top || record.bits.needKnown.isSet(cluster))
            && !isSettled(block) && !state.value.saves.contains { $0.blocks.contains(block) }
            // An error is met again by `save`, which tells it.
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
