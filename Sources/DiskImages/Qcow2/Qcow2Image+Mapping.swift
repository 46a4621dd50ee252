internal import BlockIO

/// Changing L1 and L2 tables.
extension Qcow2Image {
    /// Where the L2 table with this number is, to be changed: made if there was none, and a copy of our own if it was
    /// shared with an internal snapshot. It stays there as long as the image is open.
    func writableL2Table(_ index: UInt64) async throws(BlockError) -> UInt64 {
        while true {
            if let table = try await l2Table(index), !table.isShared { return table.host }
            if let table = try await makeL2Table(index) { return table }
            try await waitForReserve()
        }
    }

    /// nil when there is no cluster in reserve.
    private func makeL2Table(_ index: UInt64) async throws(BlockError) -> UInt64? {
        try await withMetadataLock { () async throws(BlockError) -> UInt64? in
            let old = try await l2Table(index)
            if let old, !old.isShared { return old.host }
            guard let cluster = takeReserved(1)?.clusters else { return nil }
            let host = cluster.lowerBound * clusterSize
            do throws(BlockError) {
                try await fillTable(at: host, from: old?.host)
                try await setL1Entry(index, to: host | Qcow2Entry.copied)
            } catch {
                free(cluster)
                throw error
            }
            // A new table in a file that has grown for it is zero until it is written; others show what was there.
            if old != nil || file.isBlockDevice { isolated.value.writeback.hasUnsafeTable = true }
            if let old { free(old.host / clusterSize..<old.host / clusterSize + 1) }
            return host
        }
    }

    private func fillTable(at host: UInt64, from old: UInt64?) async throws(BlockError) {
        let table = ByteRange(offset: host, length: clusterSize)
        guard let old else { return try addZeroedPages(table, .l2) }
        let pageSize = isolated.value.pages.pageSize
        for position in stride(from: 0, to: clusterSize, by: Int(pageSize)) {
            let source = try await page(containing: old + position, .l2)
            defer { source.unpin() }
            let copy = try addZeroedPage(host + position, .l2)
            copy.buffer.bytes.copyBytesQuickly(from: source.bytes)
            copy.unpin()
        }
    }

    private func setL1Entry(_ index: UInt64, to entry: UInt64) async throws(BlockError) {
        let page = try await page(containing: header.l1Offset + index * 8, .l1)
        let position = Int(header.l1Offset + index * 8 - page.offset)
        page.buffer.bytes.storeBigEndian(entry, at: position)
        isolated.value.pages.markDirty(page, position..<position + 8)
        isolated.value.writeback.noteChange()
        page.unpin()
    }

    /// Gives each of `clusters`, all of one L2 table and registered as changing, the mapping that `mapping` makes of its
    /// number and its old mapping; what the old one referred to is freed.
    ///
    /// In a drive the change is in its journal when this returns. Whatever data the new mapping points to has been
    /// written before.
    func map(
        _ clusters: Range<UInt64>, table: UInt64, isLogged: Bool = true,
        to mapping: (UInt64, ClusterMapping) -> ClusterMapping
    ) async throws(BlockError) {
        let last = clusters.upperBound - 1
        precondition(
            clusters.lowerBound / header.entriesPerL2 == last / header.entriesPerL2,
            "the clusters of one change belong to one L2 table")
        var rest = clusters
        while let first = rest.first {
            let page = try await page(containing: table + first % header.entriesPerL2 * 8, .l2)
            defer { page.unpin() }
            let position = Int(table + first % header.entriesPerL2 * 8 - page.offset)
            var count = min(rest.count, (page.buffer.count - position) / 8)
            if isLogged, let journal = isolated.value.journal {
                count = min(count, Int(journal.capacity))
                guard journal.room >= count else {
                    try await makeRoomInJournal(for: count)
                    continue
                }
            }
            // From here to the end of the turn in one step.
            let part = first..<first + UInt64(count)
            try change(part, in: page, at: position, isLogged: isLogged, mapping)
            rest = part.upperBound..<rest.upperBound
        }
    }

    private func change(
        _ clusters: Range<UInt64>, in page: MetadataPage, at position: Int, isLogged: Bool,
        _ mapping: (UInt64, ClusterMapping) -> ClusterMapping
    ) throws(BlockError) {
        func place(_ cluster: UInt64) -> Int { position + Int(cluster - clusters.lowerBound) * 8 }
        // All of them are good, or none is changed.
        var old: [ClusterMapping] = []
        old.reserveCapacity(clusters.count)
        for cluster in clusters {
            old.append(try oldMapping(page.bytes.bigEndian(at: place(cluster)), of: cluster))
        }
        var record: MappingJournal.Record?
        for (cluster, old) in zip(clusters, old) {
            let new = mapping(cluster, old)
            page.buffer.bytes.storeBigEndian(new.entry, at: place(cluster))
            release(old, unlessIn: new)
            guard isLogged else { continue }
            if let last = record, last.goesOn(with: new.entry, clusterSize: clusterSize) {
                record?.count += 1
            } else {
                if let last = record { isolated.value.journal?.append(last) }
                record = MappingJournal.Record(firstCluster: cluster, count: 1, entry: new.entry)
            }
        }
        if let record { isolated.value.journal?.append(record) }
        isolated.value.pages.markDirty(page, position..<place(clusters.upperBound))
        isolated.value.writeback.noteChange()
    }

    private func oldMapping(_ entry: UInt64, of cluster: UInt64) throws(BlockError) -> ClusterMapping {
        do throws(EntryFault) {
            return try Qcow2Entry.l2(entry, header)
        } catch {
            let range = bytes(of: cluster..<cluster + 1).clamped(to: range)
            throw corrupt("the L2 entry for \(range) of the disk \(error.why)", range: range)
        }
    }

    private func release(_ old: ClusterMapping, unlessIn new: ClusterMapping) {
        switch old {
        case .unallocated, .zero: break
        case .data(let host, _), .zeroAllocated(let host, _):
            if host != new.host { free(host / clusterSize..<host / clusterSize + 1) }
        case .compressed(let cluster): free(clusters(of: cluster))
        }
    }
}

extension ClusterMapping {
    fileprivate var host: UInt64? {
        switch self {
        case .data(let host, _), .zeroAllocated(let host, _): host
        case .unallocated, .zero, .compressed: nil
        }
    }
}

extension MappingJournal.Record {
    /// Whether the next cluster's entry can be part of this record.
    fileprivate func goesOn(with next: UInt64, clusterSize: UInt64) -> Bool {
        guard count < 0xffff_ffff else { return false }
        let hasHost = entry & Qcow2Entry.offsetMask != 0
        return next == entry + (hasHost ? count * clusterSize : 0)
    }
}
