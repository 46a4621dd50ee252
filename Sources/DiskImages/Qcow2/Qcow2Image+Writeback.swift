package import BlockIO

/// Getting metadata to the disk in an order that leaves at worst leaks (clusters that are counted and not used).
///
/// For an existing image: refcounts are durable before anything points to their clusters (`refillReserve`); data is
/// durable before the L2 entries that point to it, L2 tables before the L1 entries that point to them, and what was
/// unmapped is unmapped durably before its refcount goes down. A new image that has not been flushed yet is
/// not worth anything after a crash of the host; there the same order of writes goes without the flushes between.
extension Qcow2Image {
    package func flush() async throws(BlockError) {
        guard !isReadOnly else { return }
        guard isolated.value.allocator.isPrepared else { return try await file.flush() }
        try await withMetadataLock { () async throws(BlockError) in
            if let failure = isolated.value.allocator.failure { throw failure }
            let reserve = isolated.value.allocator.reserve
            isolated.value.allocator.reserve = 0..<0
            if !reserve.isEmpty { isolated.value.allocator.position = reserve.lowerBound }
            var freed = isolated.value.allocator.freed
            isolated.value.allocator.freed = []
            do throws(BlockError) {
                try await writeBack()
                try await lowerRefcounts(reserve, &freed)
            } catch {
                // Raised refcounts are no damage; the next flush tries again.
                isolated.value.allocator.freed += freed
                if !reserve.isEmpty { isolated.value.allocator.failure = error }
                throw error
            }
            isolated.value.allocator.freed += freed
        }
    }

    /// Writes the metadata before so much of it is dirty that it would not fit into memory.
    func writeBackIfMostlyDirty() async throws(BlockError) {
        guard isolated.value.pages.isMostlyDirty else { return }
        try await withMetadataLock { () async throws(BlockError) in
            if isolated.value.pages.isMostlyDirty { try await writeBack() }
        }
    }

    /// Writes all dirty pages in their order. Under the lock, so that no L2 table can appear meanwhile.
    func writeBack() async throws(BlockError) {
        try await growFile()
        try await writeRefcounts()
        if !isNew { try await file.flush() }
        if try await writePages(.l2), !isNew { try await file.flush() }
        if try await writePages(.l1), !isNew { try await file.flush() }
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

    /// Writes the dirty pages of a kind; false when there were none.
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

    /// The last part of a flush: gives back what was reserved for nothing and what has been unmapped, as far as no
    /// request can still be using it; what is left in `freed` has to wait.
    private func lowerRefcounts(
        _ reserve: Range<UInt64>, _ freed: inout [AllocatorState.FreedRun]
    ) async throws(BlockError) {
        _ = try await dropReferences(reserve)
        var waiting: [AllocatorState.FreedRun] = []
        var unused: [Range<UInt64>] = []
        while let run = freed.popLast() {
            guard isolated.value.requests.haveEnded(before: run.moment) else {
                waiting.append(run)
                continue
            }
            if try await dropReferences(run.clusters) { unused.append(run.clusters) }
        }
        freed = waiting
        try await writeRefcounts()
        let end = max(
            isolated.value.allocator.position * clusterSize, isolated.value.allocator.minimumFileSize)
        if !file.isBlockDevice, file.size > end { try await file.setSize(end) }
        try await file.flush()
        for clusters in unused {
            let range = ByteRange(clusters.lowerBound * clusterSize..<clusters.upperBound * clusterSize)
            // Only a favour to the file system: the clusters are free either way.
            try? await file.discard(range.clamped(to: file.range))
        }
    }
}
