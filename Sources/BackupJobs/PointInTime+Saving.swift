internal import BlockIO
internal import Glibc

/// Saving old content before it changes (DATAPATH.md, rules 1 to 6).
extension PointInTime {
    /// Returns when `range` may change: every block of it that needs saving is saved, or has been given up.
    ///
    /// Throws only with `breakGuestWrite`, when a block could not be saved.
    func save(_ range: ByteRange) async throws(BlockError) {
        let wanted = blocks(of: range)
        var next = wanted.lowerBound
        while next < wanted.upperBound {
            let cluster = next / blocksPerCluster
            guard isProtected(cluster) else {
                next = (cluster + 1) * blocksPerCluster
                continue
            }
            if options.sync == .top, !record.bits.needKnown.isSet(cluster) {
                await lookUpNeed(cluster)
                continue
            }
            if isSettled(next) {
                next = firstUnsettled(in: next..<wanted.upperBound) ?? wanted.upperBound
            } else if let index = state.value.saves.firstIndex(where: { $0.blocks.contains(next) }) {
                // A block that another request is saving is not saved yet.
                let error = await outcome(of: index)
                if let error, isStillToSave(next) { throw error }
            } else if let run = try await claimable(next..<wanted.upperBound) {
                let number = begin(run)
                let error: BlockError?
                if let index = state.value.saves.firstIndex(where: { $0.number == number }) {
                    error = await outcome(of: index)
                } else {
                    // It had nothing to wait for and has ended.
                    error = state.value.lastEnded.number == number ? state.value.lastEnded.error : nil
                }
                if let error, isStillToSave(next) { throw error }
            }
        }
    }

    /// Others of the same save may have had more luck, or need it no more.
    private func isStillToSave(_ block: Int) -> Bool {
        isProtected(block / blocksPerCluster) && !isSettled(block)
    }

    func isSettled(_ block: Int) -> Bool {
        record.bits.saved.isSet(block) || record.bits.missing.isSet(block)
    }

    func firstUnsettled(in blocks: Range<Int>) -> Int? {
        var next = blocks.lowerBound
        while let block = record.bits.saved.first(in: next..<blocks.upperBound, where: false) {
            if !record.bits.missing.isSet(block) { return block }
            next = block + 1
        }
        return nil
    }

    /// The first of `blocks` that one save can take, and for which there is room; nil after having waited or given up.
    private func claimable(_ blocks: Range<Int>) async throws(BlockError) -> Range<Int>? {
        let unit = JobRecord.blockSize
        let room = Int(min(staging.room / unit, SaveBuffers.pieceSize / unit))
        guard room > 0 else {
            if giveBackRetired() {
                if staging.room < JobRecord.blockSize, state.value.lastGivenBack != nil { await change() }
                return nil
            }
            // A job that is paused, or has not begun to copy, drains nothing, and from empty staging nothing can be drained.
            if options.stagingFull == .stall, state.value.isCopying, !control.isPaused, !staging.isEmpty {
                await change()
            } else {
                let usage = staging.usage
                lose(
                    BlockError(
                        .noSpace,
                        "Couldn't save what the guest overwrites on \(drive.name): staging is full (it holds "
                            + "\(usage.used) of at most \(usage.limit) bytes)", errno: ENOSPC),
                    .write, bytes(ofBlocks: blocks.lowerBound..<blocks.lowerBound + 1))
            }
            return nil
        }
        var end = min(blocks.upperBound, blocks.lowerBound + room)
        end = record.bits.saved.first(in: blocks.lowerBound..<end) ?? end
        end = record.bits.missing.first(in: blocks.lowerBound..<end) ?? end
        for save in state.value.saves where save.blocks.lowerBound > blocks.lowerBound {
            end = min(end, save.blocks.lowerBound)
        }
        var cluster = blocks.lowerBound / blocksPerCluster + 1
        while cluster * blocksPerCluster < end {
            let isUnknown = options.sync == .top && !record.bits.needKnown.isSet(cluster)
            if isUnknown || !isProtected(cluster) { end = cluster * blocksPerCluster }
            cluster += 1
        }
        return blocks.lowerBound..<end
    }

    /// Starts to save blocks, in a task of its own: a guest that gives up waiting does not take it with it.
    private func begin(_ blocks: Range<Int>) -> UInt64 {
        let number = state.value.nextSave
        staging.promise(UInt64(blocks.count) * JobRecord.blockSize)
        state.withState { state in
            state.nextSave += 1
            state.stagingUsers += 1
            state.saves.append(Save(number: number, blocks: blocks, began: clock.now()))
        }
        // It runs at once, up to where it has to wait, which it mostly need not.
        let task = Task.immediate(executorPreference: drive.engine) { await self.perform(number, blocks) }
        if let index = state.value.saves.firstIndex(where: { $0.number == number }) {
            state.value.saves[index].task = task
        }
        warnIfNearlyFull()
        return number
    }

    /// Waits for a save: nil when it has ended or the point in time is over, else why the guest's request fails.
    private func outcome(of index: Int) async -> BlockError? {
        if state.value.saves[index].isLate, options.saveFailure == .breakGuestWrite {
            return lateError(state.value.saves[index].blocks)
        }
        return await withUnsafeContinuation { continuation in
            state.value.saves[index].waiters.append(continuation)
        }
    }

    /// Returns when nobody is saving the block.
    func waitUntilNotSaving(_ block: Int) async {
        while let index = state.value.saves.firstIndex(where: { $0.blocks.contains(block) }) {
            await withUnsafeContinuation { continuation in
                state.value.saves[index].ends.append(continuation)
            }
        }
    }

    // MARK: One save

    private func perform(_ number: UInt64, _ blocks: Range<Int>) async {
        let failure: BlockError?
        do throws(BlockError) {
            try reserve(&record.bits.saved, blocks)
            try await copyOut(blocks)
            failure = nil
        } catch {
            failure = error
            await punchUnsaved(blocks)
        }
        staging.giveBack(UInt64(blocks.count) * JobRecord.blockSize)
        // What was promised and has not been used is room now.
        state.value.waiters.wake()
        end(number, failure, blocks)
        await punchWhereDone(blocks)
        endUse()
    }

    /// An error here is one of the record, whose file system is full, and not of staging: no waiting mends it.
    func reserve(_ section: inout BitSection, _ blocks: Range<Int>) throws(BlockError) {
        do throws(BlockError) { try section.reserve(blocks) } catch {
            throw BlockError(
                .inputOutput, "Couldn't record what the guest overwrites on \(drive.name): \(error.message)",
                errno: error.errno, range: bytes(ofBlocks: blocks))
        }
    }

    private func copyOut(_ blocks: Range<Int>) async throws(BlockError) {
        let range = bytes(ofBlocks: blocks)
        let buffer = await drive.buffers.take(range.length)
        defer { drive.buffers.give(buffer) }
        let slice = buffer[0..<Int(range.length)]
        do throws(BlockError) {
            try await drive.device.read(range, into: slice)
        } catch {
            return try await copyOutSingly(blocks, buffer, error)
        }
        try await keep(blocks, range, slice)
    }

    /// Block by block, as one bad block must not cost its neighbours. Where the policy is to go on without what cannot be
    /// read, that is tried a few times more, unless the guest's patience is short.
    private func copyOutSingly(_ blocks: Range<Int>, _ buffer: IOBuffer, _ first: BlockError)
        async throws(BlockError)
    {
        let isPatient = options.saveTimeout == .zero || options.saveTimeout >= .seconds(1)
        var failed = blocks.map { (block: $0, error: first) }
        for pause in [.zero] + (options.ignoresSourceErrors && isPatient ? ErrorPolicy.pauses : []) {
            // Nobody cancels a save; if somebody did, it would only be less patient.
            if pause > .zero { try? await clock.sleep(pause) }
            var still: [(block: Int, error: BlockError)] = []
            for (block, _) in failed {
                let range = bytes(ofBlocks: block..<block + 1)
                let slice = buffer[0..<Int(range.length)]
                do throws(BlockError) {
                    try await drive.device.read(range, into: slice)
                } catch {
                    if !options.ignoresSourceErrors { throw saveError(error, block) }
                    still.append((block, error))
                    continue
                }
                try await keep(block..<block + 1, range, slice)
            }
            failed = still
            if failed.isEmpty { return }
        }
        for (block, error) in failed where isProtected(block / blocksPerCluster) {
            try noteMissing(block..<block + 1)
            state.value.tell(
                IOFailure(.source, .read, bytes(ofBlocks: block..<block + 1), error), .ignore)
        }
    }

    private func saveError(_ error: BlockError, _ block: Int) -> BlockError {
        BlockError(
            error.code, "Couldn't save what the guest overwrites: \(error.message)", errno: error.errno,
            range: bytes(ofBlocks: block..<block + 1))
    }

    /// To staging, then the bits.
    private func keep(_ blocks: Range<Int>, _ range: ByteRange, _ slice: IOSlice) async throws(BlockError) {
        do throws(BlockError) {
            try await staging.save(range, from: slice)
        } catch {
            throw BlockError(
                error.code, "Couldn't save what the guest overwrites on \(drive.name): \(error.message)",
                errno: error.errno, range: range)
        }
        guard !record.isBroken else { return }
        noteSaved(blocks)
    }

    /// Staging has the old content of `blocks`.
    func noteSaved(_ blocks: Range<Int>) {
        setSaved(blocks)
        haveSaved()
    }

    /// The same; `haveSaved` follows in this step.
    func setSaved(_ blocks: Range<Int>) {
        for cluster in clusters(ofBlocks: blocks)
        where !record.bits.done.isSet(cluster) && !isTouched(cluster) {
            state.value.urgent.append(cluster)
        }
        record.bits.saved.set(blocks)
    }

    func haveSaved() {
        sendStagingOn()
        if !state.value.needsNoSaves { control.signal.raise() }
    }

    /// What staging has in memory goes on to its file, when it has become much.
    private func sendStagingOn() {
        guard staging.shouldSendOn, !state.value.isOver, !state.value.isSendingOn else { return }
        if let last = state.value.lastSendFailure, clock.now() - last < .seconds(1) { return }
        state.value.isSendingOn = true
        beginUse()
        // Who waits for the end of the use of staging waits for it.
        Task.immediate(executorPreference: drive.engine) {
            do throws(BlockError) {
                while !state.value.isOver, try await staging.sendNext(isReadSoon: !isCopyFar()) {
                    state.value.waiters.wake()
                }
                state.value.lastSendFailure = nil
            } catch {
                // It stays where it is safe; when there is no room left the next save meets the error, and tells it.
                state.value.lastSendFailure = clock.now()
            }
            state.value.isSendingOn = false
            // What was forgotten on its way is room now, here and above.
            state.value.waiters.wake()
            endUse()
        }
    }

    /// The copy comes to what is saved, but not soon: as little of it as can be is to stand in the page cache.
    private func isCopyFar() -> Bool {
        let (copied, now) = (control.progress.current, clock.now())
        return state.withState { state in
            // Where there are too many to remember, and after a restart, they are at least what staging holds.
            let waiting = max(UInt64(state.urgent.count) * clusterSize, staging.usage.used)
            state.distance.note(waiting: waiting, copied: copied, now: now, soon: options.soon)
            return state.distance.isFar
        }
    }

    /// Records that the old content of `block` cannot be read. In the step in which it was seen not to be saved.
    func noteMissing(_ block: Range<Int>) throws(BlockError) {
        precondition(!record.bits.saved.isAnySet(in: block), "a block that is saved is not missing")
        try reserve(&record.bits.missing, block)
        let cluster = block.lowerBound / blocksPerCluster
        if !isTouched(cluster) { state.value.urgent.append(cluster) }
        record.bits.missing.set(block)
        control.signal.raise()
    }

    /// A save has ended: whoever waits for it looks again, or fails with it.
    private func end(_ number: UInt64, _ failure: BlockError?, _ blocks: Range<Int>) {
        if let failure { giveUp(blocks, failure) }
        guard let index = state.value.saves.firstIndex(where: { $0.number == number }) else { return }
        let (waiters, ends) = (state.value.saves[index].waiters, state.value.saves[index].ends)
        state.value.saves.remove(at: index)
        for waiter in ends { waiter.resume() }
        let answer = options.saveFailure == .breakGuestWrite && !isOutOfSpace(failure) ? failure : nil
        state.value.lastEnded = (number, answer)
        for waiter in waiters { waiter.resume(returning: answer) }
    }

    /// A block could not be saved. Broken, if it still needs saving, before anybody goes on.
    private func giveUp(_ blocks: Range<Int>, _ error: BlockError) {
        guard isAnyProtected(blocks) else { return }
        if isOutOfSpace(error) {
            // No different from the bound that was set: those who wait look again, and find no room.
            staging.noteFull()
        } else if options.saveFailure == .breakSnapshot {
            lose(error, .write, error.range ?? bytes(ofBlocks: blocks))
        } else {
            tellOfRefusal(error, error.range ?? bytes(ofBlocks: blocks))
        }
    }

    /// The guest's write fails for the backup's sake, and the job goes on: people are to know.
    private func tellOfRefusal(_ error: BlockError, _ range: ByteRange) {
        state.value.warn(IOFailure(.staging, .write, range, error))
    }

    private func isOutOfSpace(_ error: BlockError?) -> Bool { error?.code == .noSpace }

    private func isAnyProtected(_ blocks: Range<Int>) -> Bool {
        clusters(ofBlocks: blocks).contains(
            where: isProtected)
    }

    /// What was saved for a cluster that is done by now is of no use.
    private func punchWhereDone(_ blocks: Range<Int>) async {
        let clusters = self.clusters(ofBlocks: blocks)
        for cluster in clusters where record.bits.done.isSet(cluster) { await punch(cluster..<cluster + 1) }
    }

    // MARK: What was saved

    /// Reads it. What the disk has lost of staging since reads as zeroes, without an error, and that is told once: the point in time is
    /// lost then, whoever reads, unless all of it is copied.
    func readSaved(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try await staging.read(range, into: buffer)
        guard let lost = staging.lostData() else { return }
        if isAnythingProtected { lose(lost, .write, range) }
        throw lost
    }

    // MARK: Late saves

    /// Looks for saves that take too long and for space, until it is cancelled. It waits for nothing but the clock.
    func watch() async {
        let timeout = options.saveTimeout
        let period =
            timeout > .zero
            ? max(.milliseconds(10), min(timeout / 8, .milliseconds(250))) : .milliseconds(250)
        var lastLook = clock.now()
        // It throws when the point in time is over.
        while !state.value.isOver, (try? await clock.sleep(period)) != nil {
            let now = clock.now()
            if timeout > .zero {
                for save in state.value.saves where save.began < now - timeout && !save.isLate {
                    beLate(save)
                }
            }
            // A stalled guest looks again: the job may have been paused, and then nothing is drained.
            state.value.waiters.wake()
            if now - lastLook >= .seconds(1), state.value.spaceLook == nil {
                lastLook = now
                // Nobody waits for it: a file system that hangs must not keep the saves from being late.
                state.value.spaceLook = Task(executorPreference: drive.engine) {
                    await self.staging.lookForSpace()
                    self.state.value.spaceLook = nil
                }
            }
        }
    }

    private func beLate(_ save: Save) {
        guard let index = state.value.saves.firstIndex(where: { $0.number == save.number }) else { return }
        state.value.saves[index].isLate = true
        let error = lateError(save.blocks)
        if isAnyProtected(save.blocks), options.saveFailure == .breakSnapshot {
            return lose(error, .write, bytes(ofBlocks: save.blocks))
        }
        if isAnyProtected(save.blocks) { tellOfRefusal(error, bytes(ofBlocks: save.blocks)) }
        // Each looks whether its own blocks still need saving.
        let waiters = state.value.saves[index].waiters
        state.value.saves[index].waiters = []
        for waiter in waiters { waiter.resume(returning: error) }
    }

    private func lateError(_ blocks: Range<Int>) -> BlockError {
        let range = bytes(ofBlocks: blocks)
        return BlockError(
            .inputOutput,
            "Couldn't save what the guest overwrites, \(range) of \(drive.name): it took longer than "
                + "\(options.saveTimeout)", errno: ETIMEDOUT, range: range)
    }

    func warnIfNearlyFull() {
        let usage = staging.usage
        guard !state.value.hasWarned, usage.used / 4 >= usage.limit / 5 else { return }
        state.value.hasWarned = true
        let message = """
            Staging for the backup of \(drive.name) is nearly full: \(usage.used) of at most \(usage.limit) bytes; when \
            it is full, \(options.stagingFull == .fail ? "the job fails" : "the guest's writes wait")
            """
        state.value.warn(
            IOFailure(.staging, .write, drive.range, BlockError(.noSpace, message, errno: ENOSPC)))
    }
}
