internal import BlockIO

/// Refcounts: a table of blocks of counters, 2 to the power of `refcountOrder` bits each (qcow2.txt, "Host cluster
/// management"). Everything here runs under the metadata lock.
extension Qcow2Image {
    /// Where the block for the clusters of a region is in the file; nil when there is none.
    func refcountBlock(_ region: UInt64) async throws(BlockError) -> UInt64? {
        let table = isolated.value.refcountTable
        guard region * 8 < table.length else { return nil }
        let page = try await page(containing: table.offset + region * 8, .refcountTable)
        defer { page.unpin() }
        let entry: UInt64 = page.bytes.bigEndian(at: Int(table.offset + region * 8 - page.offset))
        guard entry & Qcow2Entry.refcountTableReserved == 0, entry % clusterSize == 0,
            entry < UInt64(Int64.max)
        else {
            throw corrupt("refcount table entry \(region) points to offset \(entry), where no block can be")
        }
        guard entry != 0 else { return nil }
        guard isReadOnly || !isOwnTable(entry / clusterSize) else {
            throw corrupt(
                "refcount table entry \(region) points to offset \(entry), into the image's own tables")
        }
        return entry
    }

    /// How many references there are to a host cluster; 0 where nothing counts them.
    func refcount(of cluster: UInt64) async throws(BlockError) -> UInt64 {
        guard let block = try await refcountBlock(cluster / header.refcountsPerBlock) else { return 0 }
        let place = RefcountPlace(cluster, header)
        let page = try await page(containing: block + UInt64(place.byte), .refcountBlock)
        defer { page.unpin() }
        return place.load(page.bytes, at: Int(block + UInt64(place.byte) - page.offset))
    }

    /// Sets the refcount of a cluster that has a refcount block.
    func setRefcount(of cluster: UInt64, to value: UInt64) async throws(BlockError) {
        guard let block = try await refcountBlock(cluster / header.refcountsPerBlock) else {
            throw corrupt("the refcount of the cluster at offset \(cluster * clusterSize) lost its place")
        }
        let place = RefcountPlace(cluster, header)
        let page = try await page(containing: block + UInt64(place.byte), .refcountBlock)
        defer { page.unpin() }
        let position = Int(block + UInt64(place.byte) - page.offset)
        place.store(value, page.buffer.bytes, at: position)
        isolated.value.pages.markDirty(page, position..<position + 1)
    }

    /// Sets the refcounts of free clusters, which have a refcount block, to 1; a page of them in one step, since guests
    /// wait meanwhile. After an error those before may be counted.
    func countFree(_ clusters: Range<UInt64>) async throws(BlockError) {
        var rest = clusters
        while let first = rest.first {
            guard let block = try await refcountBlock(first / header.refcountsPerBlock) else {
                throw corrupt("the refcount of the cluster at offset \(first * clusterSize) lost its place")
            }
            let start = RefcountPlace(first, header).byte
            let page = try await page(containing: block + UInt64(start), .refcountBlock)
            defer { page.unpin() }
            let pageStart = Int(page.offset - block)
            let pageEnd = pageStart + page.buffer.count
            while let cluster = rest.first {
                let place = RefcountPlace(cluster, header)
                // The next block begins at 0 again.
                guard place.byte >= start, place.byte < pageEnd else { break }
                guard place.load(page.bytes, at: place.byte - pageStart) == 0 else {
                    throw corrupt("the free cluster at offset \(cluster * clusterSize) is in use")
                }
                place.store(1, page.buffer.bytes, at: place.byte - pageStart)
                isolated.value.pages.markDirty(page, place.byte - pageStart..<place.byte - pageStart + 1)
                rest = cluster + 1..<rest.upperBound
            }
        }
    }

    /// Takes one reference away from each cluster; returns those that have none left.
    func dropReferences(_ clusters: Range<UInt64>) async throws(BlockError) -> [Range<UInt64>] {
        var unused: [Range<UInt64>] = []
        for cluster in clusters {
            let count = try await refcount(of: cluster)
            guard count > 0 else {
                throw corrupt(
                    "the cluster at offset \(cluster * clusterSize) was in use with a refcount of 0")
            }
            try await setRefcount(of: cluster, to: count - 1)
            guard count == 1 else { continue }
            if let last = unused.last, last.upperBound == cluster {
                unused[unused.count - 1] = last.lowerBound..<cluster + 1
            } else {
                unused.append(cluster..<cluster + 1)
            }
        }
        return unused
    }

    /// The first cluster behind the last one with a refcount, for devices, which have no end of their own.
    func firstUnusedCluster() async throws(BlockError) -> UInt64 {
        let perBlock = header.refcountsPerBlock
        // What is counted behind the device's end is not there.
        let end = file.size / clusterSize
        for region in (0..<min(header.refcountTableEntries, end.dividedRoundingUp(by: perBlock))).reversed() {
            // Of a large device that has little this is a long way.
            if region % 4096 == 4095 { _ = await file.engine.letOthersIn() }
            guard let block = try await refcountBlock(region) else { continue }
            let first = region * perBlock
            var rest = first..<min(first + perBlock, end)
            while !rest.isEmpty {
                let last = try await lastUsed(in: rest, block)
                if last.isUsed { return last.cluster + 1 }
                rest = first..<last.cluster
                _ = await file.engine.letOthersIn()
            }
        }
        throw corrupt("its refcounts say that no cluster is in use")
    }

    /// The last cluster with a refcount among those of `clusters`, not empty, that are counted in the page of the last one; or the first
    /// of them, when none is. `block` counts all of them.
    private func lastUsed(
        in clusters: Range<UInt64>, _ block: UInt64
    ) async throws(BlockError) -> (cluster: UInt64, isUsed: Bool) {
        var cluster = clusters.upperBound - 1
        let byte = RefcountPlace(cluster, header).byte
        let page = try await page(containing: block + UInt64(byte), .refcountBlock)
        defer { page.unpin() }
        let start = Int(page.offset - block)
        while true {
            let place = RefcountPlace(cluster, header)
            guard place.load(page.bytes, at: place.byte - start) == 0 else { return (cluster, true) }
            guard cluster > clusters.lowerBound, RefcountPlace(cluster - 1, header).byte >= start else {
                return (cluster, false)
            }
            cluster -= 1
        }
    }

    /// Moves the refcount table to a larger place behind everything else, with blocks for that place.
    ///
    /// New blocks and table are durable before the header points to them; the old table is freed afterwards. Until the
    /// header is changed an error, such as a lack of room that passes, leaves everything as it was.
    func growRefcountTable() async throws(BlockError) {
        let old = isolated.value.refcountTable
        let perBlock = header.refcountsPerBlock
        // Clusters that the old table has no place for have no refcounts, and so are free.
        let start = max(isolated.value.allocator.position, old.length / 8 * perBlock)
        var (blocks, tableClusters): (UInt64, UInt64) = (1, 1)
        while true {
            let end = start + blocks + tableClusters
            let neededBlocks = end.dividedRoundingUp(by: perBlock) - start / perBlock
            let entries = end.dividedRoundingUp(by: perBlock) * 3 / 2
            let neededClusters = max(tableClusters, (entries * 8).dividedRoundingUp(by: clusterSize))
            if neededBlocks == blocks && neededClusters == tableClusters { break }
            (blocks, tableClusters) = (max(blocks, neededBlocks), neededClusters)
        }
        let table = ByteRange(offset: (start + blocks) * clusterSize, length: tableClusters * clusterSize)
        guard table.length <= Qcow2Header.maximumRefcountTableBytes else {
            throw BlockError(
                .noSpace, "Couldn't enlarge \(name): its refcount table would be larger than 8 MiB")
        }
        try checkRoom(upTo: start + blocks + tableClusters)
        let position = isolated.value.allocator.position
        do throws(BlockError) {
            try await writeRefcountTable(table, blocks: start..<start + blocks)
        } catch {
            for offset in stride(
                from: start * clusterSize, to: table.offset, by: Int(isolated.value.pages.pageSize))
            {
                isolated.value.pages.abandon(offset)
            }
            isolated.value.allocator.position = position
            throw error
        }
        try await markingFailure { () async throws(BlockError) in
            try await changeHeader {
                $0.storeBigEndian(table.offset, at: 48)
                $0.storeBigEndian(UInt32(tableClusters), at: 56)
            }
        }
        for page in isolated.value.pages.pinnedDirty(.refcountTable) {
            isolated.value.pages.markClean(page)
            page.unpin()
        }
        isolated.value.refcountTable = table
        free(old.offset / clusterSize..<old.end / clusterSize)
    }

    /// Writes a larger refcount table and, in front of it, the blocks that count its own clusters, durably.
    private func writeRefcountTable(_ table: ByteRange, blocks: Range<UInt64>) async throws(BlockError) {
        let (start, end, perBlock) = (blocks.lowerBound, table.end / clusterSize, header.refcountsPerBlock)
        let entries = IOBuffer(count: Int(table.length))
        entries.bytes.fillWithZeroes()
        try await copyTable(isolated.value.refcountTable, into: entries)
        for (index, block) in blocks.enumerated() {
            let host = block * clusterSize
            try addZeroedPages(ByteRange(offset: host, length: clusterSize), .refcountBlock)
            entries.bytes.storeBigEndian(host, at: Int(start / perBlock) * 8 + index * 8)
        }
        isolated.value.allocator.position = end
        try await growFile()
        for cluster in start..<end {
            let place = RefcountPlace(cluster, header)
            let block = (start + cluster / perBlock - start / perBlock) * clusterSize
            let page = try await page(containing: block + UInt64(place.byte), .refcountBlock)
            let position = Int(block + UInt64(place.byte) - page.offset)
            place.store(1, page.buffer.bytes, at: position)
            isolated.value.pages.markDirty(page, position..<position + 1)
            page.unpin()
        }
        try await writePages(.refcountBlock)
        try await file.write(table, from: entries.slice)
        try await file.flush()
    }

    private func copyTable(_ table: ByteRange, into buffer: IOBuffer) async throws(BlockError) {
        var done: UInt64 = 0
        while done < table.length {
            let page = try await page(containing: table.offset + done, .refcountTable)
            buffer[Int(done)..<buffer.count].bytes.copyBytesQuickly(from: page.bytes)
            done += UInt64(page.bytes.count)
            page.unpin()
        }
    }
}

/// Where in its block a cluster's refcount is. Counters of less than a byte fill bytes from the lowest bit up.
struct RefcountPlace {
    private let order: UInt32
    private let shift: UInt8
    /// The first byte of the counter in the block.
    let byte: Int

    init(_ cluster: UInt64, _ header: Qcow2Header) {
        self.init(index: cluster % header.refcountsPerBlock, order: header.refcountOrder)
    }

    init(index: UInt64, order: UInt32) {
        self.order = order
        let bit = index << UInt64(order)
        byte = Int(bit / 8)
        shift = UInt8(bit % 8)
    }

    func load(_ bytes: UnsafeRawBufferPointer, at position: Int) -> UInt64 {
        switch order {
        case 0...2: UInt64(bytes[position] >> shift & mask)
        case 3: UInt64(bytes[position])
        case 4: UInt64(bytes.bigEndian(at: position, as: UInt16.self))
        case 5: UInt64(bytes.bigEndian(at: position, as: UInt32.self))
        default: bytes.bigEndian(at: position, as: UInt64.self)
        }
    }

    /// `value` is at most what is there, or 1.
    func store(_ value: UInt64, _ bytes: UnsafeMutableRawBufferPointer, at position: Int) {
        switch order {
        case 0...2: bytes[position] = bytes[position] & ~(mask << shift) | UInt8(value) << shift
        case 3: bytes[position] = UInt8(value)
        case 4: bytes.storeBigEndian(UInt16(value), at: position)
        case 5: bytes.storeBigEndian(UInt32(value), at: position)
        default: bytes.storeBigEndian(value, at: position)
        }
    }

    private var mask: UInt8 { 1 << (1 << UInt8(order)) - 1 }
}
