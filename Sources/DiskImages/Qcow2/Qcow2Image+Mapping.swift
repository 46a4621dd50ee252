internal import BlockIO

/// Changing L1 and L2 tables.
extension Qcow2Image {
    /// Where the L2 table with this number is, to be changed: made if there was none, and a copy of our own if it was
    /// shared with an internal snapshot. It stays there as long as the image is open.
    func writableL2Table(_ index: UInt64) async throws(BlockError) -> UInt64 {
        if let table = try await l2Table(index), !table.isShared { return table.host }
        return try await withMetadataLock { () async throws(BlockError) -> UInt64 in
            let old = try await l2Table(index)
            if let old, !old.isShared { return old.host }
            let cluster = try await allocateLocked(1)
            let host = cluster.lowerBound * clusterSize
            do throws(BlockError) {
                try await fillTable(at: host, from: old?.host)
                try await setL1Entry(index, to: host | Qcow2Entry.copied)
            } catch {
                free(cluster)
                throw error
            }
            if let old { free(old.host / clusterSize..<old.host / clusterSize + 1) }
            return host
        }
    }

    private func fillTable(at host: UInt64, from old: UInt64?) async throws(BlockError) {
        let table = ByteRange(offset: host, length: clusterSize)
        guard let old else { return addZeroedPages(table, .l2) }
        let pageSize = isolated.value.pages.pageSize
        for position in stride(from: 0, to: clusterSize, by: Int(pageSize)) {
            let source = try await page(containing: old + position, .l2)
            let copy = isolated.value.pages.addZeroed(host + position, .l2)
            copy.buffer.bytes.copyBytesQuickly(from: source.bytes)
            source.unpin()
            copy.unpin()
        }
    }

    private func setL1Entry(_ index: UInt64, to entry: UInt64) async throws(BlockError) {
        let page = try await page(containing: header.l1Offset + index * 8, .l1)
        page.buffer.bytes.storeBigEndian(entry, at: Int(header.l1Offset + index * 8 - page.offset))
        isolated.value.pages.markDirty(page)
        page.unpin()
    }

    /// Gives each of `clusters`, all of one L2 table and registered as changing, the mapping that `mapping` makes of its
    /// number and its old mapping; what the old one referred to is freed.
    func map(
        _ clusters: Range<UInt64>, table: UInt64, to mapping: (UInt64, ClusterMapping) -> ClusterMapping
    ) async throws(BlockError) {
        let last = clusters.upperBound - 1
        precondition(
            clusters.lowerBound / header.entriesPerL2 == last / header.entriesPerL2,
            "the clusters of one change belong to one L2 table")
        var cluster = clusters.lowerBound
        while cluster < clusters.upperBound {
            let page = try await page(containing: table + cluster % header.entriesPerL2 * 8, .l2)
            defer { page.unpin() }
            let pageEnd = page.offset + UInt64(page.buffer.count)
            while cluster < clusters.upperBound {
                let offset = table + cluster % header.entriesPerL2 * 8
                guard offset < pageEnd else { break }
                let position = Int(offset - page.offset)
                let old = try oldMapping(page.bytes.bigEndian(at: position), of: cluster)
                let new = mapping(cluster, old)
                page.buffer.bytes.storeBigEndian(new.entry, at: position)
                isolated.value.pages.markDirty(page)
                release(old, unlessIn: new)
                cluster += 1
            }
        }
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
