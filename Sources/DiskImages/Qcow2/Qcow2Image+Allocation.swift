internal import BlockIO

extension Qcow2Image {
    /// Runs `body` as the only one that writes metadata back. Those who hold the metadata lock never wait for this one.
    func withWriteback<Result>(
        _ body: () async throws(BlockError) -> Result
    ) async throws(BlockError) -> Result {
        if !isolated.value.writeback.lock.tryAcquire() {
            await withCheckedContinuation { isolated.value.writeback.lock.wait($0) }
        }
        defer { isolated.value.writeback.lock.release() }
        return try await body()
    }

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
    func allocate(_ count: UInt64) async throws(BlockError) -> MappingJournal.ReserveRun {
        while true {
            if let taken = takeReserved(count) { return taken }
            try await waitForReserve()
        }
    }

    /// Takes clusters if there are any in reserve; nil when the caller has to wait for them, without the lock.
    func takeReserved(_ count: UInt64) -> MappingJournal.ReserveRun? {
        guard let taken = isolated.value.allocator.take(count) else { return nil }
        // Before anything is written there: what a kill leaves in reserve is unused.
        isolated.value.journal?.noteTaken(UInt64(taken.clusters.count))
        // A replay's image is not ours to write any more when it has ended.
        if options.isDrive, isReserveLow(isolated.value.allocator), isolated.value.allocator.refill == nil,
            !isolated.value.allocator.refillFailed, !isolated.value.writeback.isReplaying
        {
            startRefill()
        }
        return taken
    }

    /// Where it is in many pieces, a part of them has to be used first: a reserve has so many at most.
    private func isReserveLow(_ allocator: AllocatorState) -> Bool {
        allocator.reserveCount < reserveSize
            && allocator.reserve.count <= MappingJournal.maximumReserveRuns / 2
    }

    /// How many clusters a reserve is made of; a drive keeps about as many while the next ones are counted.
    private var reserveSize: UInt64 { max(options.minimumReserve, options.reserveBytes / clusterSize) }

    /// Enlarges the reserve while guests use what is left of it, so that none of them waits for a flush that the metadata
    /// lock is held for. `settleDrive` waits for it.
    private func startRefill() {
        isolated.value.allocator.refill = Task(executorPreference: engine) { [self] in
            do throws(BlockError) {
                try await refill(isNeeded: isReserveLow)
            } catch {
                // Whoever finds the reserve empty meets it again.
                isolated.value.allocator.refillFailed = true
            }
            isolated.value.allocator.refill = nil
        }
    }

    func waitForReserve() async throws(BlockError) { try await refill { !$0.hasReserve } }

    /// Enlarges the reserve if it `isNeeded` still when the lock is there. Without the lock.
    private func refill(isNeeded: (AllocatorState) -> Bool) async throws(BlockError) {
        for mayWriteBack in [true, false] {
            let wantsWriteBack = try await withMetadataLock { () async throws(BlockError) -> Bool in
                guard isNeeded(isolated.value.allocator) else { return false }
                return try await !refillReserve(mayWriteBack: mayWriteBack)
            }
            guard wantsWriteBack else { return }
            try await withWriteback { () async throws(BlockError) in
                // The one that ran before may have been for the same.
                let allocator = isolated.value.allocator
                guard isNeeded(allocator), allocator.free.isEmpty, allocator.unmapped.isEmpty else { return }
                try await writeBack(isForReuse: true)
            }
        }
    }

    /// Gives up a reference to host clusters, effective with a later flush.
    func free(_ clusters: Range<UInt64>) {
        isolated.value.allocator.free(clusters, at: isolated.value.requests.now())
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
            // What the other bits vouch for (bitmaps, raw external data) we do not keep up to date.
            try await setAutoclear(keepsJournal ? journalBit : 0)
            try await makeJournal()
            var position: UInt64
            if file.isBlockDevice {
                position = try await firstUnusedCluster()
            } else {
                position = file.size.dividedRoundingUp(by: clusterSize)
                if file.size < position * clusterSize { try await file.setSize(position * clusterSize) }
            }
            isolated.value.allocator.position = position
            isolated.value.allocator.minimumFileSize = position * clusterSize
            if options.isDrive { isolated.value.allocator.unsearched = 1..<position }
            isolated.value.allocator.isPrepared = true
        }
    }

    /// Makes the header's autoclear bits these, durably.
    func setAutoclear(_ bits: UInt64) async throws(BlockError) {
        guard isolated.value.autoclear != bits else { return }
        try await changeHeader { $0.storeBigEndian(bits, at: 88) }
        isolated.value.autoclear = bits
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

    /// Counts clusters that are free, so that they can be handed out; false, and nothing is done, when a write-back is to
    /// make more of them free first. Under the lock.
    private func refillReserve(mayWriteBack: Bool) async throws(BlockError) -> Bool {
        if let failure = isolated.value.allocator.failure { throw failure }
        if options.isDrive {
            if try await refillFromFreed() { return true }
            // Rather than let the file grow by as much again.
            if mayWriteBack, pendingCount >= reserveSize { return false }
            if try await refillFromInside() { return true }
        }
        do throws(BlockError) {
            try await refillFromEnd()
        } catch {
            // A full disk: what was freed and is still counted is all there is.
            guard error.code == .noSpace, options.isDrive, mayWriteBack, pendingCount > 0 else { throw error }
            return false
        }
        return true
    }

    /// How many clusters a write-back makes free, one that runs or the next one.
    private var pendingCount: UInt64 {
        isolated.value.allocator.freedCount + isolated.value.allocator.unmappingCount
    }

    /// How many more runs fit into the reserve.
    private var reserveRoom: Int {
        MappingJournal.maximumReserveRuns - isolated.value.allocator.reserve.count
    }

    /// From what was freed while the image is open; false when there is nothing. Under the lock.
    private func refillFromFreed() async throws(BlockError) -> Bool {
        try await settleFreed()
        let runs = isolated.value.allocator.free.takeLast(reserveSize, runs: reserveRoom)
        guard !runs.isEmpty else { return false }
        try await count(runs.map { .init(clusters: $0, isUnused: false) })
        return true
    }

    /// From what others left free inside of the image, by its refcounts; false when nothing was found in the part that
    /// was searched now. Under the lock.
    private func refillFromInside() async throws(BlockError) -> Bool {
        let room = reserveRoom
        var runs: [AllocatorState.ReserveRun] = []
        var (found, steps): (UInt64, UInt64) = (0, 0)
        while found < reserveSize, steps < 4096, runs.count < room,
            let cluster = isolated.value.allocator.unsearched.first
        {
            steps += 1
            let region = cluster / header.refcountsPerBlock
            guard try await refcountBlock(region) != nil else {
                dropUnsearched(upTo: (region + 1) * header.refcountsPerBlock)
                continue
            }
            let isFree = try await refcount(of: cluster) == 0
            dropUnsearched(upTo: cluster + 1)
            guard isFree else { continue }
            try checkNoTable(cluster)
            found += 1
            if let last = runs.last, last.clusters.upperBound == cluster {
                runs[runs.count - 1].clusters = last.clusters.lowerBound..<cluster + 1
            } else {
                runs.append(.init(clusters: cluster..<cluster + 1, isUnused: false))
            }
        }
        guard !runs.isEmpty else { return false }
        try await count(runs.reversed())
        return true
    }

    private func dropUnsearched(upTo cluster: UInt64) {
        let rest = isolated.value.allocator.unsearched
        isolated.value.allocator.unsearched = min(cluster, rest.upperBound)..<rest.upperBound
    }

    /// Whether a host cluster is in the header, or in the L1 or refcount table.
    func isOwnTable(_ cluster: UInt64) -> Bool {
        let range = ByteRange(offset: cluster * clusterSize, length: clusterSize)
        return cluster == 0 || range.overlaps(header.l1Range) || range.overlaps(isolated.value.refcountTable)
    }

    private func checkNoTable(_ cluster: UInt64) throws(BlockError) {
        guard !isOwnTable(cluster) else {
            throw corrupt(
                "the cluster at offset \(cluster * clusterSize), a part of its tables, has a refcount of 0")
        }
    }

    /// From behind everything else. Under the lock.
    private func refillFromEnd() async throws(BlockError) {
        let first = try await nextFreeCluster()
        let regionEnd = (first / header.refcountsPerBlock + 1) * header.refcountsPerBlock
        var end = min(first + reserveSize, regionEnd)
        if file.isBlockDevice { end = min(end, file.size / clusterSize) }
        guard end > first else { throw fullDevice() }
        var run = first..<first
        while run.upperBound < end, try await refcount(of: run.upperBound) == 0 {
            try checkNoTable(run.upperBound)
            run = first..<run.upperBound + 1
        }
        let isUnused = !file.isBlockDevice && run.lowerBound * clusterSize >= file.size
        isolated.value.allocator.position = run.upperBound
        try await count([.init(clusters: run, isUnused: isUnused)])
    }

    /// Throws when clusters up to `end` do not fit onto the device, before anything is made there.
    func checkRoom(upTo end: UInt64) throws(BlockError) {
        guard file.isBlockDevice, end > file.size / clusterSize else { return }
        throw fullDevice()
    }

    private func fullDevice() -> BlockError {
        BlockError(
            .noSpace, "Couldn't allocate a cluster of \(name): the device of \(file.size) bytes is full")
    }

    /// Raises the refcounts of free clusters to 1 and puts them in reserve. Under the lock.
    private func count(_ runs: [AllocatorState.ReserveRun]) async throws(BlockError) {
        // Before they are counted: what a kill leaves of them is given back. What is left of the reserve is used first.
        isolated.value.journal?.setReserve((runs + isolated.value.allocator.reserve).reversed())
        var counted: [AllocatorState.ReserveRun] = []
        do throws(BlockError) {
            for run in runs {
                try await countFree(run.clusters)
                counted.append(run)
            }
            try await growFile()
            if !isNew {
                // A kill finds them counted, and so does a power loss: the next flush comes before the L2 tables.
                try await writeRefcounts()
                if !options.isDrive { try await file.flush() }
            }
        } catch {
            // Counted and unused is no damage; as what was freed they are free again after the next flush.
            for run in counted { free(run.clusters) }
            isolated.value.journal?.setReserve(isolated.value.allocator.reserve.reversed())
            throw error
        }
        isolated.value.allocator.setReserve(runs + isolated.value.allocator.reserve)
        isolated.value.allocator.refillFailed = false
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
            try await growRefcountTable()
        }
        if try await refcountBlock(region) != nil { return }
        let host = try await skipUsedClusters()
        try checkRoom(upTo: host + 1)
        // From here on a failure would leave a block that is in use and does not say so.
        try await markingFailure { () async throws(BlockError) in
            isolated.value.allocator.position = host + 1
            try addZeroedPages(ByteRange(offset: host * clusterSize, length: clusterSize), .refcountBlock)
            let page = try await page(
                containing: isolated.value.refcountTable.offset + region * 8, .refcountTable)
            let position = Int(isolated.value.refcountTable.offset + region * 8 - page.offset)
            page.buffer.bytes.storeBigEndian(host * clusterSize, at: position)
            isolated.value.pages.markDirty(page, position..<position + 8)
            page.unpin()
            try await ensureRefcountBlock(for: host)
            try await setRefcount(of: host, to: 1)
        }
    }

    func addZeroedPages(_ range: ByteRange, _ kind: MetadataPage.Kind) throws(BlockError) {
        let pageSize = isolated.value.pages.pageSize
        for offset in stride(from: range.offset, to: range.end, by: Int(pageSize)) {
            try addZeroedPage(offset, kind).unpin()
        }
    }

    /// A new page, pinned.
    func addZeroedPage(_ offset: UInt64, _ kind: MetadataPage.Kind) throws(BlockError) -> MetadataPage {
        guard let page = isolated.value.pages.addZeroed(offset, kind) else {
            throw corrupt("a table lies at offset \(offset), which its refcounts call free")
        }
        return page
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
