internal import BlockIO

/// Where new host clusters come from.
///
/// Allocation appends: `position` goes up from the end of the file, so that what is written in order lies in order,
/// and free space inside of an image, which only its refcounts vouch for, is left alone. Clusters are taken in
/// *reserves* of some MiB whose refcounts are raised, and for an existing image made durable, before any of them is
/// handed out: whatever the order in which a crash finds the rest, a cluster that is referred to is never free.
struct AllocatorState {
    /// The autoclear bits are cleared and `position` is found.
    var isPrepared = false
    /// No host cluster from here on is in use.
    var position: UInt64 = 0
    /// Clusters whose refcounts are 1 and that nothing refers to yet.
    var reserve: Range<UInt64> = 0..<0
    /// Clusters that lost a reference; their refcounts are lowered once that is durable.
    var freed: [FreedRun] = []
    /// The file is not cut shorter than this.
    var minimumFileSize: UInt64 = 0
    /// A change of the refcount structures was given up halfway: nothing may be written any more.
    var failure: BlockError?

    struct FreedRun {
        var clusters: Range<UInt64>
        /// Requests that began before may still use the clusters.
        var moment: UInt64
    }

    mutating func take(_ count: UInt64) -> Range<UInt64>? {
        guard !reserve.isEmpty else { return nil }
        let taken = reserve.lowerBound..<min(reserve.upperBound, reserve.lowerBound + count)
        reserve = taken.upperBound..<reserve.upperBound
        return taken
    }

    mutating func free(_ clusters: Range<UInt64>, at moment: UInt64) {
        if let last = freed.last, last.moment == moment, last.clusters.upperBound == clusters.lowerBound {
            freed[freed.count - 1].clusters = last.clusters.lowerBound..<clusters.upperBound
        } else {
            freed.append(FreedRun(clusters: clusters, moment: moment))
        }
    }
}

extension Qcow2Image {
    private static let reserveBytes: UInt64 = 64 << 20

    /// Runs `body` as the only one that changes refcounts, tables and the allocator.
    func withMetadataLock<Result>(
        _ body: () async throws(BlockError) -> Result
    ) async throws(BlockError) -> Result {
        if !isolated.value.metadataLock.tryAcquire() {
            await withCheckedContinuation { isolated.value.metadataLock.wait($0) }
        }
        defer { isolated.value.metadataLock.release() }
        return try await body()
    }

    /// Takes up to `count` contiguous host clusters, at least one, into use.
    func allocate(_ count: UInt64) async throws(BlockError) -> Range<UInt64> {
        while true {
            if let taken = isolated.value.allocator.take(count) { return taken }
            try await withMetadataLock { () async throws(BlockError) in
                if isolated.value.allocator.reserve.isEmpty { try await refillReserve() }
            }
        }
    }

    /// The same under the metadata lock.
    func allocateLocked(_ count: UInt64) async throws(BlockError) -> Range<UInt64> {
        while true {
            if let taken = isolated.value.allocator.take(count) { return taken }
            try await refillReserve()
        }
    }

    /// Gives up a reference to host clusters, effective with a later flush.
    func free(_ clusters: Range<UInt64>) {
        isolated.value.allocator.free(clusters, at: isolated.value.requests.now)
    }

    func clusters(of cluster: CompressedCluster) -> Range<UInt64> {
        let range = ByteRange(offset: cluster.host, length: cluster.length)
        return range.offset / clusterSize..<range.end.dividedRoundingUp(by: clusterSize)
    }

    /// Does what has to be done once before the first change of an image.
    func prepareForWriting() async throws(BlockError) {
        if let failure = isolated.value.allocator.failure { throw failure }
        if isolated.value.allocator.isPrepared { return }
        try await withMetadataLock { () async throws(BlockError) in
            if isolated.value.allocator.isPrepared { return }
            if isolated.value.autoclear != 0 {
                // What these bits vouch for (bitmaps, raw external data) we do not keep up to date.
                try await changeHeader { $0.storeBigEndian(UInt64(0), at: 88) }
                isolated.value.autoclear = 0
            }
            var position: UInt64
            if file.isBlockDevice {
                position = try await firstUnusedCluster()
            } else {
                position = file.size.dividedRoundingUp(by: clusterSize)
                if file.size < position * clusterSize { try await file.setSize(position * clusterSize) }
            }
            isolated.value.allocator.position = position
            isolated.value.allocator.minimumFileSize = position * clusterSize
            isolated.value.allocator.isPrepared = true
        }
    }

    /// Changes the header's first sector in one write, durably.
    func changeHeader(_ change: (UnsafeMutableRawBufferPointer) -> Void) async throws(BlockError) {
        let sector = ByteRange(offset: 0, length: 512)
        let buffer = IOBuffer(count: 512)
        try await file.read(sector, into: buffer.slice)
        change(buffer.bytes)
        try await file.write(sector, from: buffer.slice)
        try await file.flush()
    }

    /// Raises the refcounts of the next free clusters and makes that durable. Under the lock.
    private func refillReserve() async throws(BlockError) {
        if let failure = isolated.value.allocator.failure { throw failure }
        let wanted = max(16, Self.reserveBytes / clusterSize)
        let first = try await nextFreeCluster()
        let regionEnd = (first / header.refcountsPerBlock + 1) * header.refcountsPerBlock
        var end = min(first + wanted, regionEnd)
        if file.isBlockDevice { end = min(end, file.size / clusterSize) }
        guard end > first else {
            throw BlockError(
                .noSpace, "Couldn't allocate a cluster of \(name): the device of \(file.size) bytes is full")
        }
        var run = first..<first
        while run.upperBound < end, try await refcount(of: run.upperBound) == 0 {
            try await setRefcount(of: run.upperBound, to: 1)
            run = first..<run.upperBound + 1
        }
        isolated.value.allocator.position = run.upperBound
        do throws(BlockError) {
            try await growFile()
            if !isNew {
                try await writeRefcounts()
                try await file.flush()
            }
        } catch {
            free(run)
            throw error
        }
        isolated.value.allocator.reserve = run
    }

    /// The file reaches as far as clusters are in use. Under the lock.
    func growFile() async throws(BlockError) {
        let bytes = isolated.value.allocator.position * clusterSize
        if !file.isBlockDevice, file.size < bytes { try await file.setSize(bytes) }
    }

    /// The first cluster at `position` or above with a refcount of 0 in a refcount block, which is made if there is
    /// none; `position` is there afterwards. Under the lock.
    private func nextFreeCluster() async throws(BlockError) -> UInt64 {
        while true {
            let candidate = try await skipUsedClusters()
            try await ensureRefcountBlock(for: candidate)
            if isolated.value.allocator.position == candidate { return candidate }
        }
    }

    private func skipUsedClusters() async throws(BlockError) -> UInt64 {
        let start = isolated.value.allocator.position
        var candidate = start
        while try await refcount(of: candidate) != 0 {
            candidate += 1
            guard candidate - start < 1 << 20 else {
                throw corrupt("its refcounts say that clusters beyond the end of the file are in use")
            }
        }
        isolated.value.allocator.position = candidate
        return candidate
    }

    /// Makes sure that the refcount of `cluster` has a place. Under the lock.
    func ensureRefcountBlock(for cluster: UInt64) async throws(BlockError) {
        let region = cluster / header.refcountsPerBlock
        if region * 8 >= isolated.value.refcountTable.length {
            try await markingFailure { () async throws(BlockError) in try await growRefcountTable() }
        }
        if try await refcountBlock(region) != nil { return }
        let host = try await skipUsedClusters()
        // From here on a failure would leave a block that is in use and does not say so.
        try await markingFailure { () async throws(BlockError) in
            isolated.value.allocator.position = host + 1
            addZeroedPages(ByteRange(offset: host * clusterSize, length: clusterSize), .refcountBlock)
            let page = try await page(
                containing: isolated.value.refcountTable.offset + region * 8, .refcountTable)
            let position = Int(isolated.value.refcountTable.offset + region * 8 - page.offset)
            page.buffer.bytes.storeBigEndian(host * clusterSize, at: position)
            isolated.value.pages.markDirty(page)
            page.unpin()
            try await ensureRefcountBlock(for: host)
            try await setRefcount(of: host, to: 1)
        }
    }

    func addZeroedPages(_ range: ByteRange, _ kind: MetadataPage.Kind) {
        let pageSize = isolated.value.pages.pageSize
        for offset in stride(from: range.offset, to: range.end, by: Int(pageSize)) {
            isolated.value.pages.addZeroed(offset, kind).unpin()
        }
    }

    /// After an error in `body` nothing is written to this image any more.
    func markingFailure(_ body: () async throws(BlockError) -> Void) async throws(BlockError) {
        do throws(BlockError) {
            try await body()
        } catch {
            isolated.value.allocator.failure = error
            throw error
        }
    }
}
