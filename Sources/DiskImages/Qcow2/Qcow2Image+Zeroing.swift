package import BlockIO

/// Writing zeroes: by the mapping where whole clusters are meant, as data otherwise.
extension Qcow2Image {
    package func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        try checkWritable(range, to: "write zeroes to")
        guard !range.isEmpty else { return }
        try await prepareForWriting()
        let ticket = isolated.value.requests.begin()
        defer { isolated.value.requests.end(ticket) }
        try await notingDamage { () async throws(BlockError) in
            var rest = range
            while !rest.isEmpty {
                try await keepMetadataBounded()
                rest = rest.dropFirst(try await zeroStart(of: rest, mayUnmap: mayUnmap))
            }
            try await persistMappings()
        }
    }

    /// With `mayUnmap` whole clusters are zeroed by their mapping alone.
    package func zeroesQuickly(mayUnmap: Bool) -> Bool { mayUnmap && (header.version >= 3 || backing.isNone) }

    /// Whole clusters become zeroes; the rest stays as it is.
    package func discard(_ range: ByteRange) async throws(BlockError) {
        try checkWritable(range, to: "discard")
        let start = min(range.offset.dividedRoundingUp(by: clusterSize) * clusterSize, range.end)
        let end = range.end == size ? size : max(start, range.end.roundedDown(toMultipleOf: clusterSize))
        // Version 2 cannot hide a backing file's content without writing zeroes over it.
        guard end > start, backing.isNone || header.version >= 3 else { return }
        try await writeZeroes(ByteRange(start..<end), mayUnmap: true)
    }

    /// Zeroes what it can of the start of `range` at once; returns how many bytes that are.
    private func zeroStart(of range: ByteRange, mayUnmap: Bool) async throws(BlockError) -> UInt64 {
        let run = try await run(at: range.offset, limit: range.length)
        let part = range.prefix(run.length)
        let (clusters, areWhole) = leadingClusters(part)
        switch run.mapping {
        case .zero: return part.length
        case .zeroAllocated where !mayUnmap || !areWhole: return part.length
        case .unallocated where backing.isNone: return part.length
        case .data(let host, isShared: false) where !mayUnmap:
            // In place, rather than as a zero cluster that keeps its host cluster: requests that were on their way to
            // that one could still land there when it comes to hold data again.
            try await file.writeZeroes(ByteRange(offset: host, length: part.length), mayUnmap: false)
            return part.length
        case .unallocated, .zeroAllocated, .data, .compressed: break
        }
        if areWhole, header.version >= 3 || backing.isNone {
            return try await zero(clusters).clamped(to: part).length
        }
        let piece = part.clamped(
            to: bytes(of: areWhole ? clusters : clusters.lowerBound..<clusters.lowerBound + 1))
        if case .data(let host, isShared: false) = run.mapping {
            try await file.writeZeroes(ByteRange(offset: host, length: piece.length), mayUnmap: false)
            return piece.length
        }
        let data = piece.prefix(max(clusterSize, 1 << 20))
        let buffer = IOBuffer(count: Int(data.length))
        buffer.bytes.fillWithZeroes()
        try await writeMapped(data, from: buffer.slice)
        return data.length
    }

    /// Maps whole clusters as zeroes; returns the bytes of those that were, none after waiting for somebody else.
    private func zero(_ wanted: Range<UInt64>) async throws(BlockError) -> ByteRange {
        let start = bytes(of: wanted).prefix(0)
        guard let change = await beginChange(wanted) else { return start }
        defer { isolated.value.changes.end(change) }
        let clusters = change.clusters
        let table = try await writableL2Table(clusters.lowerBound / header.entriesPerL2)
        // Without a backing file nothing shines through an unmapped cluster, and version 2 knows nothing else.
        let zero = header.version >= 3 ? ClusterMapping.zero : .unallocated
        let hasBacking = !backing.isNone
        try await map(clusters, table: table) { _, old in
            switch old {
            case .unallocated where !hasBacking: .unallocated
            case .unallocated, .zero, .zeroAllocated, .data, .compressed: zero
            }
        }
        return bytes(of: clusters)
    }
}
