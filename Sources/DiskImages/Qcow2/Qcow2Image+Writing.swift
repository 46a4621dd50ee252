package import BlockIO

/// Writing data: in place where the clusters are ours alone, into new clusters otherwise.
extension Qcow2Image {
    package func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        precondition(UInt64(buffer.count) == range.length, "a buffer is as long as its range")
        try checkWritable(range, to: "write")
        guard !range.isEmpty else { return }
        try await prepareForWriting()
        let ticket = isolated.value.requests.begin()
        defer { isolated.value.requests.end(ticket) }
        try await notingDamage { () async throws(BlockError) in
            try await writeMapped(range, from: buffer)
            try await persistMappings()
        }
    }

    package func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        guard let place = placeInMemory(of: range) else { return false }
        return file.writeAtOnce(place, from: buffer)
    }

    package func beginWrite(
        _ range: ByteRange, from buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool {
        guard let place = placeInMemory(of: range) else { return false }
        // The cluster is not used for anything else meanwhile.
        let ticket = isolated.value.requests.begin()
        let hasBegun = file.beginWrite(place, from: buffer) { [isolated] end in
            isolated.value.requests.end(ticket)
            done(end)
        }
        if !hasBegun { isolated.value.requests.end(ticket) }
        return hasBegun
    }

    /// Where in the file `range` of a drive can be written in place, as far as that is known without a wait.
    private func placeInMemory(of range: ByteRange) -> ByteRange? {
        guard options.isDrive, !isReadOnly, range.end <= size, isolated.value.allocator.isPrepared,
            isolated.value.allocator.failure == nil,
            case .data(let host, isShared: false) = mappingInMemory(of: range)
        else { return nil }
        return ByteRange(offset: host, length: range.length)
    }

    func checkWritable(_ range: ByteRange, to verb: String) throws(BlockError) {
        guard !isReadOnly else {
            throw BlockError(
                .invalid, "Couldn't \(verb) \(range) of \(name): it is open for reading only", range: range)
        }
        if let obstacle = header.writeObstacle {
            throw BlockError(.unsupported, "Couldn't \(verb) \(range) of \(name): \(obstacle)", range: range)
        }
        try check(range, to: verb)
    }

    func writeMapped(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        var done: UInt64 = 0
        while done < range.length {
            try await keepMetadataBounded()
            let rest = range.dropFirst(done)
            let run = try await run(at: rest.offset, limit: rest.length)
            let part = rest.prefix(run.length)
            let slice = buffer[Int(done)..<Int(done + part.length)]
            if case .data(let host, isShared: false) = run.mapping {
                try await file.write(ByteRange(offset: host, length: part.length), from: slice)
                done += part.length
            } else {
                done += try await writeRemapping(part, from: slice)
            }
        }
    }

    /// The clusters of one L2 table that the start of `range` covers whole (where the disk ends, its end counts), or
    /// else its first cluster alone.
    func leadingClusters(_ range: ByteRange) -> (clusters: Range<UInt64>, areWhole: Bool) {
        let first = range.offset / clusterSize
        var end = range.end / clusterSize
        if range.end >= contentSize { end = range.end.dividedRoundingUp(by: clusterSize) }
        guard range.offset % clusterSize == 0, end > first else { return (first..<first + 1, false) }
        let tableEnd = (first / header.entriesPerL2 + 1) * header.entriesPerL2
        return (first..<min(end, tableEnd), true)
    }

    func bytes(of clusters: Range<UInt64>) -> ByteRange {
        ByteRange(clusters.lowerBound * clusterSize..<clusters.upperBound * clusterSize)
    }

    /// Registers that the mapping of the first of `clusters` is about to change; nil after having waited for somebody
    /// else who changed it.
    func beginChange(_ clusters: Range<UInt64>) async -> ClusterChanges.Change? {
        var clusters = clusters
        if let other = isolated.value.changes.first(overlapping: clusters) {
            guard other.clusters.lowerBound > clusters.lowerBound else {
                await other.waitUntilDone()
                return nil
            }
            clusters = clusters.lowerBound..<other.clusters.lowerBound
        }
        return isolated.value.changes.begin(clusters)
    }

    /// Writes the start of `range`, whose clusters have to be mapped anew; returns how many bytes that were (none when
    /// others have changed what was found).
    private func writeRemapping(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) -> UInt64 {
        let (wanted, areWhole) = leadingClusters(range)
        guard let change = await beginChange(wanted) else { return 0 }
        defer { isolated.value.changes.end(change) }
        // Look again: only from here on nobody else changes the mapping of these clusters.
        let found = try await run(
            at: range.offset, limit: range.clamped(to: bytes(of: change.clusters)).length)
        if case .data(_, isShared: false) = found.mapping { return 0 }
        let part = range.prefix(found.length)
        var clusters = wanted.lowerBound..<part.end.dividedRoundingUp(by: clusterSize)
        let table = try await writableL2Table(part.offset / header.bytesPerL2)
        let host: UInt64
        var fresh: AllocatorState.ReserveRun?
        if case .zeroAllocated(let kept, isShared: false) = found.mapping {
            host = kept.roundedDown(toMultipleOf: clusterSize)
        } else {
            let allocated = try await allocate(UInt64(clusters.count))
            fresh = allocated
            host = allocated.clusters.lowerBound * clusterSize
            clusters = clusters.lowerBound..<clusters.lowerBound + UInt64(allocated.clusters.count)
        }
        isolated.value.changes.shorten(change, to: clusters)
        let written = part.clamped(to: bytes(of: clusters))
        let slice = buffer[0..<Int(written.length)]
        if !options.rules.journalsAfterData { logEarly(clusters, host) }
        if !options.rules.mapsAfterData { try await map(clusters, at: host, table: table) }
        do throws(BlockError) {
            if areWhole {
                try await file.write(ByteRange(offset: host, length: written.length), from: slice)
                let end = host + UInt64(clusters.count) * clusterSize
                if host + written.length < end, !(fresh?.isUnused ?? false) {
                    // Behind the disk's end, where what was there before would come to light if it were enlarged.
                    try await file.writeZeroes(ByteRange(host + written.length..<end), mayUnmap: false)
                }
            } else {
                try await writeFilled(
                    written, from: slice, host: host, over: found.mapping, isUnused: fresh?.isUnused ?? false)
            }
        } catch {
            if let fresh { free(fresh.clusters) }
            throw error
        }
        // An error here leaves new clusters that are counted and not all used: a leak, no damage.
        try await map(clusters, at: host, table: table)
        return written.length
    }

    /// Maps `clusters` to host clusters of their own from `host` on.
    private func map(_ clusters: Range<UInt64>, at host: UInt64, table: UInt64) async throws(BlockError) {
        try await map(clusters, table: table) { cluster, _ in
            .data(host: host + (cluster - clusters.lowerBound) * clusterSize, isShared: false)
        }
    }

    /// What a test does instead of the rule `journalsAfterData`.
    private func logEarly(_ clusters: Range<UInt64>, _ host: UInt64) {
        guard let journal = isolated.value.journal, journal.room > 0 else { return }
        isolated.value.journal?.append(
            .init(
                firstCluster: clusters.lowerBound, count: UInt64(clusters.count),
                entry: ClusterMapping.data(host: host, isShared: false).entry))
    }

    /// Larger clusters are copied in pieces of this many bytes.
    private static let pieceSize: UInt64 = 256 << 10

    /// Writes one cluster, of which `range` is a part, to its new place, with its old content around the part; `isUnused`
    /// says that zeroes need not be written there.
    private func writeFilled(
        _ range: ByteRange, from buffer: IOSlice, host: UInt64, over old: ClusterMapping, isUnused: Bool
    ) async throws(BlockError) {
        let cluster = range.expanded(toMultipleOf: clusterSize)
        let isZero = isZero(old, at: cluster.offset)
        if case .compressed = old {
            return try await writeWhole(cluster, range, from: buffer, host: host, isUnused: isUnused)
        }
        if !isZero, clusterSize <= Self.pieceSize {
            return try await writeWhole(cluster, range, from: buffer, host: host, isUnused: isUnused)
        }
        if !isUnused {
            // A kept place stays allocated.
            var keeps = false
            if case .zeroAllocated(_, isShared: false) = old { keeps = true }
            try await file.writeZeroes(ByteRange(offset: host, length: clusterSize), mayUnmap: !keeps)
        }
        if !isZero {
            try await copy(ByteRange(cluster.offset..<range.offset), to: host)
            try await copy(ByteRange(range.end..<cluster.end), to: host + (range.end - cluster.offset))
        }
        let place = ByteRange(offset: host + (range.offset - cluster.offset), length: range.length)
        try await file.write(place, from: buffer)
    }

    /// Whether a cluster with this mapping is known to be zero without a look at it.
    private func isZero(_ mapping: ClusterMapping, at offset: UInt64) -> Bool {
        switch mapping {
        case .zero, .zeroAllocated: true
        case .data, .compressed: false
        case .unallocated:
            switch backing {
            case .none: true
            case .open(let device): offset >= device.size
            case .notOpen: false
            }
        }
    }

    /// The cluster in one write, or only what is new where the rest is zero already.
    private func writeWhole(
        _ cluster: ByteRange, _ range: ByteRange, from buffer: IOSlice, host: UInt64, isUnused: Bool
    ) async throws(BlockError) {
        let whole = IOBuffer(count: Int(clusterSize))
        let present = cluster.clamped(to: self.range)
        try await readMapped(present, into: whole[0..<Int(present.length)])
        whole[Int(present.length)..<whole.count].bytes.fillWithZeroes()
        let start = Int(range.offset - cluster.offset)
        if isUnused, ZeroDetection.isZero(whole.bytes) {
            return try await file.write(
                ByteRange(offset: host + UInt64(start), length: range.length), from: buffer)
        }
        whole[start..<whole.count].bytes.copyBytesQuickly(from: UnsafeRawBufferPointer(buffer.bytes))
        try await file.write(ByteRange(offset: host, length: clusterSize), from: whole.slice)
    }

    /// Copies what the disk holds in `range` to `host`, where zeroes are.
    private func copy(_ range: ByteRange, to host: UInt64) async throws(BlockError) {
        var rest = range.clamped(to: self.range)
        guard !rest.isEmpty else { return }
        let buffer = IOBuffer(count: Int(min(rest.length, Self.pieceSize)))
        while !rest.isEmpty {
            let piece = rest.prefix(Self.pieceSize)
            let slice = buffer[0..<Int(piece.length)]
            try await readMapped(piece, into: slice)
            if !ZeroDetection.isZero(slice.bytes) {
                try await file.write(
                    ByteRange(offset: host + (piece.offset - range.offset), length: piece.length), from: slice
                )
            }
            rest = rest.dropFirst(piece.length)
        }
    }
}
