internal import BlockIO

/// Giving back what staging holds and nobody needs (DATAPATH.md, rule C).
extension PointInTime {
    /// Clusters are done, and what staging holds of them is of no use: it is given back now, or together with others.
    func retire(_ clusters: Range<Int>) async {
        guard !staging.isEmpty else { return }
        let length = state.value.retired.clustersPerStretch
        for stretch in clusters.lowerBound / length...(clusters.upperBound - 1) / length {
            let all = self.clusters(ofStretch: stretch)
            state.value.retired.add(staging.held(in: bytes(of: all.clamped(to: clusters))), in: stretch)
            guard state.value.retired.holds(stretch), isOver(all) else { continue }
            state.value.retired.take(stretch)
            await giveBack([stretch])
        }
        if state.value.retired.isTooMuch(of: staging.usage.limit) { await giveBackRetired() }
    }

    /// Gives back what waits for it, or returns when somebody who does that has come further; false when nothing waits.
    @discardableResult
    func giveBackRetired() async -> Bool {
        let stretches = state.value.retired.takeAll()
        if stretches.isEmpty {
            guard state.value.givingBack > 0 else { return false }
            await change()
        } else {
            await giveBack(stretches)
        }
        return true
    }

    private func giveBack(_ stretches: [Int]) async {
        state.value.givingBack += 1
        for stretch in stretches {
            for run in record.bits.done.runs(in: clusters(ofStretch: stretch)) { await punch(run) }
        }
        state.value.givingBack -= 1
        state.value.waiters.wake()
    }

    private func clusters(ofStretch stretch: Int) -> Range<Int> {
        let length = state.value.retired.clustersPerStretch
        return stretch * length..<min(clusterCount, (stretch + 1) * length)
    }

    /// Whether nothing of the clusters is to be copied any more.
    private func isOver(_ clusters: Range<Int>) -> Bool {
        var next = clusters.lowerBound
        while let open = record.bits.done.first(in: next..<clusters.upperBound, where: false) {
            guard record.bits.notNeeded.isSet(open) else { return false }
            next = open + 1
        }
        return true
    }

    /// The part of staging of clusters that are done is given back at once, unless the view reads it just now.
    func punch(_ clusters: Range<Int>) async {
        guard !staging.isEmpty else { return }
        var next = clusters.lowerBound
        while next < clusters.upperBound {
            let end =
                (next..<clusters.upperBound).first { state.value.pins[$0] != nil } ?? clusters.upperBound
            if end > next,
                await staging.punch(bytes(of: next..<end).expanded(toMultipleOf: JobRecord.blockSize))
            {
                state.value.waiters.wake()
            }
            if end < clusters.upperBound {
                // It may have been let go while the others were punched.
                if state.value.pins[end] == nil { next = end; continue }
                state.value.unpunched.insert(end)
            }
            next = end + 1
        }
    }

    /// What staging holds of blocks that are not saved is of no use, and no cluster that is done would give it back: guests
    /// that wait for space could wait for ever. Nobody is saving the blocks.
    func punchUnsaved(_ blocks: Range<Int>) async {
        var next = blocks.lowerBound
        while !staging.isEmpty, next < blocks.upperBound,
            let first = record.bits.saved.first(in: next..<blocks.upperBound, where: false)
        {
            next = record.bits.saved.first(in: first..<blocks.upperBound) ?? blocks.upperBound
            let range = bytes(ofBlocks: first..<next).expanded(toMultipleOf: JobRecord.blockSize)
            if await staging.punch(range) { state.value.waiters.wake() }
        }
    }

    func pin(_ cluster: Int) { state.value.pins[cluster, default: 0] += 1 }

    func unpin(_ cluster: Int) async {
        guard let count = state.value.pins[cluster] else { preconditionFailure("what is let go was pinned") }
        state.value.pins[cluster] = count > 1 ? count - 1 : nil
        // What is pinned at the end goes with the file.
        guard count == 1, !state.value.isOver, state.value.unpunched.remove(cluster) != nil else { return }
        await punch(cluster..<cluster + 1)
    }
}
