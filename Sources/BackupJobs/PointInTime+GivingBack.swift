internal import BlockIO

/// Giving back what staging holds and nobody needs (DATAPATH.md, rule C).
extension PointInTime {
    /// Clusters are done, and what staging holds of them is of no use: it is given back together with others, by a task of
    /// its own.
    func retire(_ clusters: Range<Int>) {
        guard !staging.isEmpty, !clusters.isEmpty else { return }
        noteRetired(stretches(of: clusters), of: clusters)
        giveBackWhole(clusters)
        if isShortOfRoom || state.value.retired.isTooMuch(of: staging.usage.limit) { giveBackRetired() }
    }

    /// Of many clusters staging seldom holds anything.
    private func noteRetired(_ stretches: ClosedRange<Int>, of clusters: Range<Int>) {
        let (first, last) = (stretches.lowerBound, stretches.upperBound)
        let all = self.clusters(ofStretch: first).lowerBound..<self.clusters(ofStretch: last).upperBound
        let held = staging.held(in: bytes(of: all.clamped(to: clusters)))
        guard held > 0 else { return }
        guard first < last else { return state.value.retired.add(held, in: first) }
        let middle = first + (last - first) / 2
        noteRetired(first...middle, of: clusters)
        noteRetired(middle + 1...last, of: clusters)
    }

    /// The next save may find no room.
    private var isShortOfRoom: Bool { staging.room < SaveBuffers.pieceSize }

    /// Gives back the stretches of which these clusters were the last that were to be copied.
    func giveBackWhole(_ clusters: Range<Int>) {
        guard !clusters.isEmpty else { return }
        for stretch in state.value.retired.waiting(in: stretches(of: clusters))
        where isOver(self.clusters(ofStretch: stretch)) { state.value.retired.makeDue(stretch) }
        giveBackDue()
    }

    /// Begins to give back all that waits for it. False when there is none, or the disk has had its time and not done it.
    @discardableResult
    func giveBackRetired() -> Bool {
        state.value.retired.makeAllDue()
        if giveBackDue() { return true }
        guard let last = state.value.lastGivenBack else { return false }
        return options.saveTimeout == .zero || clock.now() - last < options.saveTimeout
    }

    /// True when a task for that has begun.
    @discardableResult
    private func giveBackDue() -> Bool {
        guard state.value.lastGivenBack == nil, let first = state.value.retired.next() else { return false }
        beginUse()
        state.value.lastGivenBack = clock.now()
        // It runs at once, up to where it has to wait, or has done much: then there is some room already.
        Task.immediate(executorPreference: drive.engine) {
            var next: Int? = first
            while let stretch = next {
                for run in record.bits.done.runs(in: clusters(ofStretch: stretch)) {
                    // The file goes, or the next agent does it.
                    guard !state.value.isOver, !control.isSuspended || isShortOfRoom else {
                        state.value.retired.putBack()
                        return endGivingBack()
                    }
                    await punch(run)
                }
                await letOthersIn(after: 8)
                next = state.value.retired.next()
            }
            endGivingBack()
        }
        return true
    }

    private func endGivingBack() {
        state.value.lastGivenBack = nil
        state.value.waiters.wake()
        endUse()
    }

    private func stretches(of clusters: Range<Int>) -> ClosedRange<Int> {
        let length = state.value.retired.clustersPerStretch
        return clusters.lowerBound / length...(clusters.upperBound - 1) / length
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
            if end > next { await giveBack(done: next..<end) }
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
            await giveBack(bytes(ofBlocks: first..<next))
        }
    }

    /// In this step nobody needs what staging holds of `range`; then its space is given back.
    private func giveBack(_ range: ByteRange) async {
        if forget(range) { await punchAndLook(range) }
        await punchLog()
    }

    /// The same for clusters that are done, and so stay done when others have their turn in between.
    private func giveBack(done clusters: Range<Int>) async {
        let range = bytes(of: clusters)
        var (rest, isToPunch) = (range, false)
        while !rest.isEmpty {
            let part = staging.prefix(of: rest, holding: options.forgottenAtOnce)
            let held = Int(staging.held(in: part) / JobRecord.blockSize)
            rest = rest.dropFirst(part.length)
            if forget(part) { isToPunch = true }
            await letOthersIn(after: held + 8)
        }
        if isToPunch { await punchAndLook(range) }
        await punchLog()
    }

    /// So many blocks were forgotten, or as much was done; to forget one takes a tenth of a microsecond or two.
    private func letOthersIn(after work: Int) async {
        state.value.forgottenInTurn += work
        guard state.value.forgottenInTurn >= options.forgottenAtOnce else { return }
        state.value.forgottenInTurn = 0
        if state.value.lastGivenBack != nil { state.value.lastGivenBack = clock.now() }
        _ = await drive.engine.letOthersIn()
    }

    /// True when it is to be punched.
    private func forget(_ range: ByteRange) -> Bool {
        let before = staging.usage.used
        let isToPunch = staging.forget(range.expanded(toMultipleOf: JobRecord.blockSize))
        // There is room from now on.
        if staging.usage.used < before { state.value.waiters.wake() }
        return isToPunch
    }

    private func punchAndLook(_ range: ByteRange) async {
        await staging.punch(range.expanded(toMultipleOf: JobRecord.blockSize))
        await haveGivenBack()
    }

    private func punchLog() async {
        while await staging.punchLog() { await haveGivenBack() }
    }

    private func haveGivenBack() async {
        if state.value.lastGivenBack != nil { state.value.lastGivenBack = clock.now() }
        guard staging.isFull else { return }
        await staging.lookForSpace()
        state.value.waiters.wake()
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
