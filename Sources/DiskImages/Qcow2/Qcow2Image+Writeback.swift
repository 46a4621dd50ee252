package import BlockIO

/// Getting metadata to the disk in an order that leaves at worst leaks (clusters that are counted and not used).
///
/// Refcounts, data, and the copied rest of clusters are durable before the L2 entries that point to them; L2 tables before
/// the L1 entries that point to them; and what was unmapped is unmapped durably before its refcount goes down. What is
/// written of L2 tables is a copy made *before* the flush of the data: an entry that is changed meanwhile belongs to the
/// next time. A new image that has not been flushed yet is not worth anything after a crash of the host; there
/// the same order of writes goes without the flushes between.
///
/// A guest's flush costs one flush of the file as long as no mapping has changed, and goes without the metadata lock then.
struct WritebackState {
    /// A mapping changed since the last write-back began.
    var isNeeded = false
    /// How many have begun, and the number of the last one that went well.
    var begun: UInt64 = 0
    var completed: UInt64 = 0
    var isRunning = false
    /// A journal is being replayed: only some of its records are in the tables, so that a write-back neither releases
    /// any nor lets go of what they gave up (a second replay finds every cluster counted that a record points to).
    var isReplaying = false
    /// One that nobody waits for.
    var background: Task<Void, Never>?
}

extension Qcow2Image {
    package func flush() async throws(BlockError) {
        guard !isReadOnly else { return }
        guard isolated.value.allocator.isPrepared else { return try await file.flush() }
        if let failure = isolated.value.allocator.failure { throw failure }
        try await notingDamage { () async throws(BlockError) in
            if options.isDrive { try await flushDrive() } else { try await withMetadataLock(flushAll) }
        }
    }

    private func flushDrive() async throws(BlockError) {
        let state = isolated.value.writeback
        if !state.isNeeded, !state.isRunning { return try await file.flush() }
        let isWrittenBack = try await withMetadataLock { () async throws(BlockError) -> Bool in
            // One that began after we came has written, and flushed, everything that we are about.
            if isolated.value.writeback.completed > state.begun { return true }
            guard isolated.value.writeback.isNeeded else { return false }
            try await writeBack(settles: false)
            return true
        }
        startSettling()
        // Without the lock: those who came during one write-back share a flush of the file.
        if !isWrittenBack { try await file.flush() }
    }

    /// Writes the metadata before so much of it is dirty that it would not fit into memory, or the journal.
    func keepMetadataBounded() async throws(BlockError) {
        let isMostlyDirty = isolated.value.pages.isMostlyDirty
        if isMostlyDirty, isolated.value.pages.isNearlyFull || !options.isDrive {
            try await withMetadataLock { () async throws(BlockError) in
                if isolated.value.pages.isMostlyDirty { try await writeBack() }
            }
        } else if options.isDrive, isMostlyDirty || isolated.value.journal?.isMostlyFull ?? false,
            isolated.value.writeback.background == nil
        {
            startWriteBack()
        }
    }

    /// Writes back while the guest goes on; `settleDrive` waits for it.
    private func startWriteBack() {
        isolated.value.writeback.background = Task(executorPreference: engine) { [self] in
            // The pages stay dirty and the journal full after an error, so that whoever next needs them clean
            // meets it.
            try? await withMetadataLock { () async throws(BlockError) in
                if isolated.value.writeback.isNeeded { try await writeBack() }
            }
            isolated.value.writeback.background = nil
        }
    }

    /// Gives back what has been freed after the guest was answered, which has nothing to wait for there.
    private func startSettling() {
        guard isolated.value.writeback.background == nil, !isolated.value.allocator.unmapped.isEmpty
        else { return }
        isolated.value.writeback.background = Task(executorPreference: engine) { [self] in
            // Damage is remembered by the image; after another error what is left is tried again next time.
            try? await notingDamage { () async throws(BlockError) in
                try await withMetadataLock { () async throws(BlockError) in
                    if isolated.value.allocator.failure == nil { try await settleFreed() }
                }
            }
            isolated.value.writeback.background = nil
        }
    }

    /// Waits until `records` more fit into the journal.
    func makeRoomInJournal(for records: Int) async throws(BlockError) {
        while let journal = isolated.value.journal, journal.room < records {
            try await withMetadataLock { () async throws(BlockError) in
                if let journal = isolated.value.journal, journal.room < records { try await writeBack() }
            }
        }
    }

    /// Writes all dirty pages in their order. Under the lock, so that no table can appear meanwhile.
    ///
    /// `isForReuse` says that it is done to use again what was freed; without `settles` the caller sees to what was.
    func writeBack(isForReuse: Bool = false, settles: Bool = true) async throws(BlockError) {
        isolated.value.writeback.begun += 1
        isolated.value.writeback.isNeeded = false
        isolated.value.writeback.isRunning = true
        defer { isolated.value.writeback.isRunning = false }
        let number = isolated.value.writeback.begun
        let logged = isolated.value.journal?.next
        let isReplaying = isolated.value.writeback.isReplaying
        let freed = isReplaying ? [] : isolated.value.allocator.takeFreed()
        // In the same step as what was noted above: what changes from here on belongs to the next time.
        let tables = copyDirtyPages(.l2)
        let flushesTables = options.rules.flushesUnmapping || !isForReuse
        do throws(BlockError) {
            try await writeInOrder(tables, flushesTables: flushesTables)
        } catch {
            isolated.value.writeback.isNeeded = true
            isolated.value.allocator.putBackFreed(freed)
            throw error
        }
        if let logged, flushesTables, !isReplaying { isolated.value.journal?.release(upTo: logged) }
        isolated.value.allocator.unmapped += freed
        isolated.value.writeback.completed = number
        if options.isDrive, settles { try await settleFreed() }
    }

    private func writeInOrder(_ tables: CopiedPages, flushesTables: Bool) async throws(BlockError) {
        let flushes = !isNew
        defer { for page in tables.pages { page.unpin() } }
        do throws(BlockError) {
            try await growFile()
            try await writeRefcounts()
            if flushes, options.rules.flushesDataFirst { try await file.flush() }
            for (page, place) in zip(tables.pages, tables.places) {
                try await file.write(
                    ByteRange(offset: page.offset, length: UInt64(place.count)), from: tables.buffer[place])
            }
            if flushes, flushesTables, !tables.pages.isEmpty { try await file.flush() }
        } catch {
            for page in tables.pages { isolated.value.pages.markDirty(page) }
            throw error
        }
        if try await writePages(.l1), flushes { try await file.flush() }
        if !options.rules.flushesDataFirst { try await file.flush() }
    }

    /// Copies the dirty pages of a kind as they are now and calls them clean; they are pinned.
    private func copyDirtyPages(_ kind: MetadataPage.Kind) -> CopiedPages {
        let pages = isolated.value.pages.pinnedDirty(kind)
        let buffer = IOBuffer(count: max(1, pages.reduce(0) { $0 + $1.buffer.count }))
        var (places, end): ([Range<Int>], Int) = ([], 0)
        for page in pages {
            let place = end..<end + page.buffer.count
            buffer[place].bytes.copyBytesQuickly(from: page.bytes)
            isolated.value.pages.markClean(page)
            places.append(place)
            end = place.upperBound
        }
        return CopiedPages(pages: pages, buffer: buffer, places: places)
    }

    /// Pages as they were, side by side in one buffer.
    private struct CopiedPages {
        var pages: [MetadataPage]
        var buffer: IOBuffer
        var places: [Range<Int>]
    }

    /// Refcount blocks before the table that makes them count. Under the lock.
    func writeRefcounts() async throws(BlockError) {
        let wroteBlocks = try await writePages(.refcountBlock)
        let table = isolated.value.pages.pinnedDirty(.refcountTable)
        for page in table { page.unpin() }
        guard !table.isEmpty else { return }
        if wroteBlocks, !isNew { try await file.flush() }
        try await writePages(.refcountTable)
    }

    /// Writes the dirty pages of a kind, which nobody changes meanwhile; false when there were none.
    @discardableResult
    func writePages(_ kind: MetadataPage.Kind) async throws(BlockError) -> Bool {
        let pages = isolated.value.pages.pinnedDirty(kind)
        defer { for page in pages { page.unpin() } }
        for page in pages {
            isolated.value.pages.markClean(page)
            do throws(BlockError) {
                try await file.write(
                    ByteRange(offset: page.offset, length: UInt64(page.buffer.count)), from: page.buffer.slice
                )
            } catch {
                isolated.value.pages.markDirty(page)
                throw error
            }
        }
        return !pages.isEmpty
    }

    // MARK: Giving back

    /// Takes their reference from clusters that are durably unmapped and that no request can still be using; those
    /// that lost their last one can be used again, and their space goes back to the file system. Under the lock.
    func settleFreed() async throws(BlockError) {
        if !options.rules.waitsForUnmapping {
            isolated.value.allocator.unmapped += isolated.value.allocator.takeFreed()
        }
        let runs = isolated.value.allocator.unmapped
        isolated.value.allocator.unmapped = []
        for (index, run) in runs.enumerated() {
            guard isolated.value.requests.haveEnded(before: run.moment) || !options.rules.waitsForRequests
            else {
                isolated.value.allocator.unmapped.append(run)
                continue
            }
            do throws(BlockError) {
                for clusters in try await dropReferences(run.clusters) {
                    if options.isDrive { await punch(clusters) }
                    isolated.value.allocator.free.insert(clusters)
                }
            } catch {
                // What this run had left is leaked; the rest can wait.
                isolated.value.allocator.unmapped += runs[(index + 1)...]
                throw error
            }
        }
    }

    private func punch(_ clusters: Range<UInt64>) async {
        let range = ByteRange(clusters.lowerBound * clusterSize..<clusters.upperBound * clusterSize)
        // In portions, so that a large one does not hold up for long what the file is asked for meanwhile.
        var rest = range.clamped(to: file.range)
        while !rest.isEmpty {
            let portion = rest.prefix(64 << 20)
            // Only a favour to the file system: the clusters are free either way.
            try? await file.discard(portion)
            rest = rest.dropFirst(portion.length)
        }
    }

    /// Makes everything durable and gives back what was reserved for nothing and what has been freed, as far as no
    /// request can still be using it. Under the lock.
    func flushAll() async throws(BlockError) {
        if let failure = isolated.value.allocator.failure { throw failure }
        try await writeBack()
        let reserve = isolated.value.allocator.reserve
        isolated.value.journal?.setReserve([])
        isolated.value.allocator.setReserve([])
        do throws(BlockError) {
            for run in reserve {
                for clusters in try await dropReferences(run.clusters) {
                    isolated.value.allocator.free.insert(clusters)
                }
            }
            try await settleFreed()
            let unused = isolated.value.allocator.free.runs
            while let run = isolated.value.allocator.free.takeRun(endingAt: isolated.value.allocator.position)
            {
                isolated.value.allocator.position = run.lowerBound
            }
            try await writeRefcounts()
            let end = max(
                isolated.value.allocator.position * clusterSize, isolated.value.allocator.minimumFileSize)
            if !file.isBlockDevice, file.size > end { try await file.setSize(end) }
            try await file.flush()
            if !options.isDrive { for clusters in unused { await punch(clusters) } }
        } catch {
            // Raised refcounts are no damage, but what is in memory does not know them all any more.
            isolated.value.allocator.failure = error
            throw error
        }
    }

    /// The end of a drive that was written; see `close`.
    func settleDrive() async throws(BlockError) {
        guard options.isDrive, !isReadOnly else { return }
        while let background = isolated.value.writeback.background { await background.value }
        if let failure = isolated.value.allocator.failure {
            if isolated.value.journal?.isEmpty ?? false { try await removeJournal() }
            throw failure
        }
        if isolated.value.allocator.isPrepared {
            try await notingDamage { () async throws(BlockError) in try await withMetadataLock(flushAll) }
        }
        try await removeJournal()
    }
}
