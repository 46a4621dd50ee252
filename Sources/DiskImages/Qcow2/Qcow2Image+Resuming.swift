internal import BlockIO

/// Taking up a target whose writer was killed.
///
/// What a kill leaves is counted where it is used (`persistMappings`), and perhaps counted where it is not: the reserve,
/// what was freed, what was on its way. Going through the tables once tells the two apart. Lowering the refcounts of
/// what nothing refers to is harmless at any point; nothing else is changed before it is done.
extension Qcow2Image {
    /// Makes clusters free that are counted and that nothing uses, before the first change of an image; false, and
    /// nothing is changed, when clusters may be shared so that their references cannot be told.
    func dropLeaks() async throws(BlockError) -> Bool {
        if let obstacle = header.writeObstacle {
            throw BlockError(.unsupported, "Couldn't go on with \(name): \(obstacle)")
        }
        guard header.snapshotCount == 0, !header.hasUnknownExtensions else { return false }
        return try await withMetadataLock { () async throws(BlockError) -> Bool in
            precondition(!isolated.value.allocator.isPrepared, "an image is taken up before it is changed")
            guard let used = try await usedClusters() else { return false }
            try await setAutoclear(0)
            // Tables that point to what is freed now must not come back after a power loss.
            if !isNew { try await file.flush() }
            let unused = try await uncount(notIn: used)
            let end = used.end
            if !file.isBlockDevice { try await file.setSize(end * clusterSize) }
            for run in unused where run.lowerBound < end {
                isolated.value.allocator.free.insert(run.clamped(to: 0..<end))
            }
            isolated.value.allocator.position = end
            isolated.value.allocator.minimumFileSize = end * clusterSize
            isolated.value.allocator.isPrepared = true
            return true
        }
    }

    /// The host clusters that the header and the tables use; nil when there are compressed or shared ones.
    private func usedClusters() async throws(BlockError) -> UsedClusters? {
        var used = UsedClusters(count: file.size.dividedRoundingUp(by: clusterSize))
        func use(_ range: ByteRange, _ what: String) throws(BlockError) {
            let clusters = range.offset / clusterSize..<range.end.dividedRoundingUp(by: clusterSize)
            for cluster in clusters where !used.insert(cluster) {
                throw corrupt(
                    "the cluster at offset \(cluster * clusterSize) of \(file.size) bytes, \(what), is beyond the end or "
                        + "used twice")
            }
        }
        try use(ByteRange(offset: 0, length: clusterSize), "the header")
        if !header.l1Range.isEmpty { try use(header.l1Range, "in the L1 table") }
        try use(isolated.value.refcountTable, "in the refcount table")
        for region in 0..<isolated.value.refcountTable.length / 8 {
            guard let block = try await refcountBlock(region) else { continue }
            try use(ByteRange(offset: block, length: clusterSize), "refcount block \(region)")
        }
        for index in 0..<UInt64(header.l1Entries) {
            guard let table = try await l2Table(index) else { continue }
            if table.isShared { return nil }
            let place = ByteRange(offset: table.host, length: clusterSize)
            try use(place, "L2 table \(index)")
            for offset in stride(from: place.offset, to: place.end, by: Int(isolated.value.pages.pageSize)) {
                let page = try await page(containing: offset, .l2)
                defer { page.unpin() }
                for position in stride(from: 0, to: page.bytes.count, by: 8) {
                    let entry: UInt64 = page.bytes.bigEndian(at: position)
                    if entry == 0 { continue }
                    let mapping: ClusterMapping
                    do throws(EntryFault) { mapping = try Qcow2Entry.l2(entry, header) } catch {
                        throw corrupt("an entry of L2 table \(index) \(error.why)")
                    }
                    switch mapping {
                    case .unallocated, .zero: break
                    case .compressed, .data(_, isShared: true), .zeroAllocated(_, isShared: true): return nil
                    case .data(let host, _), .zeroAllocated(let host, _):
                        try use(ByteRange(offset: host, length: clusterSize), "data of L2 table \(index)")
                    }
                }
            }
        }
        return used
    }

    /// Sets the refcounts of clusters that are not used to 0 and writes them; returns these clusters.
    private func uncount(notIn used: UsedClusters) async throws(BlockError) -> [Range<UInt64>] {
        var unused = ClusterRuns()
        for region in 0..<isolated.value.refcountTable.length / 8 {
            let first = region * header.refcountsPerBlock
            guard let block = try await refcountBlock(region) else {
                if let cluster = used.first(in: first..<first + header.refcountsPerBlock) {
                    throw corrupt("the cluster at offset \(cluster * clusterSize) is in use and not counted")
                }
                continue
            }
            let pageSize = isolated.value.pages.pageSize
            let perPage = (pageSize * 8) >> UInt64(header.refcountOrder)
            for number in 0..<clusterSize / pageSize {
                let page = try await page(containing: block + number * pageSize, .refcountBlock)
                defer { page.unpin() }
                for index in 0..<perPage {
                    let place = RefcountPlace(index: index, order: header.refcountOrder)
                    let count = place.load(page.bytes, at: place.byte)
                    let cluster = first + number * perPage + index
                    if used.contains(cluster) {
                        guard count == 0 else { continue }
                        throw corrupt(
                            "the cluster at offset \(cluster * clusterSize) is in use with a refcount of 0")
                    }
                    guard count > 0 else { continue }
                    place.store(0, page.buffer.bytes, at: place.byte)
                    isolated.value.pages.markDirty(page, place.byte..<place.byte + 1)
                    unused.insert(cluster..<cluster + 1)
                }
            }
            try await writePages(.refcountBlock)
        }
        return unused.runs
    }
}

/// A bit for each cluster of a file.
private struct UsedClusters {
    private let count: UInt64
    private var words: [UInt64]
    /// The number behind the last one.
    private(set) var end: UInt64 = 0

    init(count: UInt64) {
        self.count = count
        words = Array(repeating: 0, count: Int(count.dividedRoundingUp(by: 64)))
    }

    func contains(_ cluster: UInt64) -> Bool {
        cluster < count && words[Int(cluster / 64)] >> (cluster % 64) & 1 != 0
    }

    /// False when the cluster is in it already, or does not exist.
    mutating func insert(_ cluster: UInt64) -> Bool {
        guard cluster < count, !contains(cluster) else { return false }
        words[Int(cluster / 64)] |= 1 << (cluster % 64)
        end = max(end, cluster + 1)
        return true
    }

    /// One of these, if any is in it.
    func first(in clusters: Range<UInt64>) -> UInt64? {
        clusters.clamped(to: 0..<count).first { contains($0) }
    }
}
