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
///
/// A target has no journal: its metadata goes to the page cache, in the same order and without flushes, before a request
/// returns (`persistMappings`). So a kill leaves at worst leaks, and everything for which a request has returned is found.
struct WritebackState {
    /// Held by the one who writes tables. What it flushes takes long; refcounts, new tables and the allocator, which guests
    /// wait for, are under the metadata lock, which it takes for its short steps only.
    var lock = EngineLock()
    /// A mapping changed since the last write-back began.
    private(set) var isNeeded = false
    /// How many changes of mappings there were; and up to which one, in a target, they outlive the process.
    private(set) var changes: UInt64 = 0
    var persisted: UInt64 = 0
    /// An L1 entry was changed whose new table, as long as it is not flushed, may be found with another content after a
    /// power loss than with entries of its own or zeroes.
    var hasUnsafeTable = false
    /// How many have begun, and the number of the last one that went well.
    var begun: UInt64 = 0
    var completed: UInt64 = 0
    var isRunning = false
    /// A journal is being replayed: only some of its records are in the tables, so that a write-back neither releases
    /// any nor lets go of what they gave up (a second replay finds every cluster counted that a record points to).
    var isReplaying = false
    /// One that nobody waits for.
    var background: Task<Void, Never>?

    mutating func noteChange() {
        isNeeded = true
        changes += 1
    }

    mutating func begin() {
        begun += 1
        isNeeded = false
        isRunning = true
    }

    /// Ends one that failed: what it was about still has to be written.
    mutating func putBack() { isNeeded = true }
}

extension Qcow2Image {
    package func flush() async throws(BlockError) {
        guard !isReadOnly else { return }
        guard isolated.value.allocator.isPrepared else { return try await file.flush() }
        if let failure = isolated.value.allocator.failure { throw failure }
        try await notingDamage { () async throws(BlockError) in
            if options.isDrive { try await flushDrive() } else { try await withWriteback(flushAll) }
        }
    }

    private func flushDrive() async throws(BlockError) {
        let state = isolated.value.writeback
        if !state.isNeeded, !state.isRunning { return try await file.flush() }
        let isWrittenBack = try await withWriteback { () async throws(BlockError) -> Bool in
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
            try await withWriteback { () async throws(BlockError) in
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
            try? await withWriteback { () async throws(BlockError) in
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
            try await withWriteback { () async throws(BlockError) in
                if let journal = isolated.value.journal, journal.room < records { try await writeBack() }
            }
        }
    }

    /// Writes all pages that are dirty now in their order. Under `withWriteback`, without the metadata lock.
    ///
    /// `isForReuse` says that it is done to use again what was freed; without `settles` the caller sees to what was.
    func writeBack(isForReuse: Bool = false, settles: Bool = true) async throws(BlockError) {
        isolated.value.writeback.begin()
        defer { isolated.value.writeback.isRunning = false }
        let number = isolated.value.writeback.begun
        let logged = isolated.value.journal?.next
        let isReplaying = isolated.value.writeback.isReplaying
        isolated.value.allocator.unmappingCount = isReplaying ? 0 : isolated.value.allocator.freedCount
        defer { isolated.value.allocator.unmappingCount = 0 }
        let freed = isReplaying ? [] : isolated.value.allocator.takeFreed()
        // In the same step as what was noted above: what changes from here on belongs to the next time.
        let tables = copyTables()
        let flushesTables = options.rules.flushesUnmapping || !isForReuse
        var flushes: Flushes = [.l1]
        if options.rules.flushesDataFirst { flushes.insert(.data) }
        if flushesTables { flushes.insert(.tables) }
        do throws(BlockError) {
            try await writeInOrder(tables, flushing: isNew ? [] : flushes)
            if !options.rules.flushesDataFirst { try await file.flush() }
        } catch {
            isolated.value.writeback.putBack()
            isolated.value.allocator.putBackFreed(freed)
            throw error
        }
        if let logged, flushesTables, !isReplaying { isolated.value.journal?.release(upTo: logged) }
        isolated.value.allocator.unmapped += freed
        isolated.value.allocator.unmappingCount = 0
        isolated.value.writeback.completed = number
        if options.isDrive, settles { try await withMetadataLock(settleFreed) }
    }

    /// Writes a target's changed metadata to the page cache until all mappings that were changed so far outlive this
    /// process, though not the host. Callers that come while that is going on share the next time.
    func persistMappings() async throws(BlockError) {
        guard !options.isDrive, options.rules.persistsMappings else { return }
        let wanted = isolated.value.writeback.changes
        guard isolated.value.writeback.persisted < wanted else { return }
        try await withWriteback { () async throws(BlockError) in
            guard isolated.value.writeback.persisted < wanted else { return }
            if let failure = isolated.value.allocator.failure { throw failure }
            // In one step with the copy of the tables, in which they all are.
            let changes = isolated.value.writeback.changes
            let tables = copyTables()
            let hasUnsafeTable = isolated.value.writeback.hasUnsafeTable && !isNew
            isolated.value.writeback.hasUnsafeTable = false
            do throws(BlockError) {
                try await writeInOrder(tables, flushing: hasUnsafeTable ? [.tables] : [])
            } catch {
                if hasUnsafeTable { isolated.value.writeback.hasUnsafeTable = true }
                throw error
            }
            isolated.value.writeback.persisted = changes
        }
    }

    /// After which steps of writing metadata the file is flushed.
    private struct Flushes: OptionSet {
        let rawValue: Int
        /// Data and refcounts, before the L2 tables that need them.
        static let data = Flushes(rawValue: 1)
        /// L2 tables, before the L1 entries that point to them.
        static let tables = Flushes(rawValue: 2)
        static let l1 = Flushes(rawValue: 4)
    }

    private func writeInOrder(
        _ tables: CopiedTables, flushing flushes: Flushes
    ) async throws(BlockError) {
        defer { for part in tables.l2.parts + tables.l1.parts { part.page.unpin() } }
        do throws(BlockError) {
            // What the copies need is counted already.
            if options.rules.countsFirst { try await withMetadataLock(writeCounts) }
            if flushes.contains(.data) { try await file.flush() }
            try await write(tables.l2)
            if flushes.contains(.tables), !tables.l2.parts.isEmpty { try await file.flush() }
            try await write(tables.l1)
            if flushes.contains(.l1), !tables.l1.parts.isEmpty { try await file.flush() }
        } catch {
            for part in tables.l2.parts + tables.l1.parts {
                isolated.value.pages.markDirty(part.page, part.dirty)
            }
            throw error
        }
        if !options.rules.countsFirst { try await withMetadataLock(writeCounts) }
    }

    private func writeCounts() async throws(BlockError) {
        try await growFile()
        try await writeRefcounts()
    }

    private func write(_ copied: CopiedPages) async throws(BlockError) {
        for part in copied.parts { try await file.write(part.range, from: copied.buffer[part.place]) }
    }

    /// Both in one step: no L1 entry is among them whose table is not.
    private func copyTables() -> CopiedTables {
        CopiedTables(l2: copyDirtyPages(.l2), l1: copyDirtyPages(.l1))
    }

    private struct CopiedTables {
        var l2: CopiedPages
        var l1: CopiedPages
    }

    /// Copies what is dirty of the pages of a kind as it is now and calls them clean; they are pinned.
    private func copyDirtyPages(_ kind: MetadataPage.Kind) -> CopiedPages {
        let pages = isolated.value.pages.pinnedDirty(kind)
        let buffer = IOBuffer(count: max(1, pages.reduce(0) { $0 + $1.dirty.count }))
        var (parts, end): ([CopiedPages.Part], Int) = ([], 0)
        for page in pages {
            let part = CopiedPages.Part(page: page, dirty: page.dirty, place: end..<end + page.dirty.count)
            buffer[part.place].bytes.copyBytesQuickly(
                from: UnsafeRawBufferPointer(rebasing: page.bytes[part.dirty]))
            isolated.value.pages.markClean(page)
            parts.append(part)
            end = part.place.upperBound
        }
        return CopiedPages(parts: parts, buffer: buffer)
    }

    /// What was dirty of pages, side by side in one buffer.
    private struct CopiedPages {
        struct Part {
            var page: MetadataPage
            /// Where in the page it was.
            var dirty: Range<Int>
            /// Where in the buffer it is.
            var place: Range<Int>

            var range: ByteRange { page.range(of: dirty) }
        }

        var parts: [Part]
        var buffer: IOBuffer
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
            let dirty = page.dirty
            isolated.value.pages.markClean(page)
            do throws(BlockError) {
                try await file.write(page.range(of: dirty), from: page.buffer[dirty])
            } catch {
                isolated.value.pages.markDirty(page, dirty)
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
                // The last cluster of something compressed may be one of them.
                if let table = run.clusters.first(where: isOwnTable) {
                    throw corrupt("a part of its tables, at offset \(table * clusterSize), was used for data")
                }
                for clusters in try await dropReferences(run.clusters) {
                    if options.isDrive { await punch(clusters) }
                    try noteFree(clusters)
                }
            } catch {
                // What this run had left is leaked; the rest can wait.
                isolated.value.allocator.unmapped += runs[(index + 1)...]
                throw error
            }
        }
    }

    /// An image in which a guest can write to the counters has the same clusters come free again.
    private func noteFree(_ clusters: Range<UInt64>) throws(BlockError) {
        guard isolated.value.allocator.free.insert(clusters) else {
            throw corrupt(
                "clusters from offset \(clusters.lowerBound * clusterSize) on were in use while free")
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
    /// request can still be using it. Under `withWriteback`, without the metadata lock.
    func flushAll() async throws(BlockError) {
        if let failure = isolated.value.allocator.failure { throw failure }
        try await writeBack()
        try await withMetadataLock(giveBack)
    }

    private func giveBack() async throws(BlockError) {
        let reserve = isolated.value.allocator.reserve
        isolated.value.journal?.setReserve([])
        isolated.value.allocator.setReserve([])
        do throws(BlockError) {
            for run in reserve {
                for clusters in try await dropReferences(run.clusters) { try noteFree(clusters) }
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
        while let refill = isolated.value.allocator.refill { await refill.value }
        while let background = isolated.value.writeback.background { await background.value }
        if let failure = isolated.value.allocator.failure {
            if isolated.value.journal?.isEmpty ?? false { try await removeJournal() }
            throw failure
        }
        if isolated.value.allocator.isPrepared {
            try await notingDamage { () async throws(BlockError) in try await withWriteback(flushAll) }
        }
        try await removeJournal()
    }
}
