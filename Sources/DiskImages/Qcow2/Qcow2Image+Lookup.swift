internal import BlockIO

/// Finding what stands where: from guest offsets to mappings.
extension Qcow2Image {
    /// A run of bytes of the disk that are mapped alike: data contiguous in the file, or all of one kind.
    struct Run {
        /// For data, `host` is where the first byte of the run lies.
        var mapping: ClusterMapping
        var length: UInt64
    }

    /// What is at `offset`, and for how many of the next `limit` bytes that goes on; stays within one L2 table.
    func run(at offset: UInt64, limit: UInt64) async throws(BlockError) -> Run {
        let l1Index = offset / header.bytesPerL2
        guard let table = try await l2Table(l1Index) else {
            return Run(mapping: .unallocated, length: try await emptyTables(from: offset, limit: limit))
        }
        let inTable = min(limit, header.bytesPerL2 - offset % header.bytesPerL2)
        return try await run(at: offset, limit: inTable, table: table.host)
    }

    /// What is mapped as one, in bytes: a cluster, or a subcluster.
    private var mappingUnit: UInt64 { header.hasExtendedL2 ? header.clusterSize / 32 : header.clusterSize }

    /// What is at the start of `range`, and for how much of it that goes on, as far as tables in memory say it; nil where they
    /// don't.
    func runInMemory(of range: ByteRange) -> Run? {
        var result: Run?
        var rest = range
        while !rest.isEmpty {
            let part = rest.prefix(mappingUnit - rest.offset % mappingUnit)
            guard let mapping = mappingInMemory(of: part) else { return result }
            if let result, !result.goesOn(with: mapping) { return result }
            result = Run(mapping: result?.mapping ?? mapping, length: (result?.length ?? 0) + part.length)
            rest = rest.dropFirst(part.length)
        }
        return result
    }

    /// What is at `range`, when that lies within a cluster (or subcluster) and the tables that say it are in memory and
    /// right; nil else, and `run` tells.
    func mappingInMemory(of range: ByteRange) -> ClusterMapping? {
        let unit = mappingUnit
        guard !range.isEmpty, range.offset / unit == (range.end - 1) / unit else { return nil }
        let l1Index = range.offset / header.bytesPerL2
        guard let l1 = pageInMemory(containing: header.l1Offset + l1Index * 8) else { return nil }
        let table: (host: UInt64, isShared: Bool)
        do throws(BlockError) {
            guard let found = try l1Entry(l1Index, in: l1) else { return .unallocated }
            table = found
        } catch {
            return nil  // `run` tells what is wrong
        }
        let index = range.offset % header.bytesPerL2 / header.clusterSize
        let entryOffset = table.host + index * header.l2EntrySize
        guard let l2 = pageInMemory(containing: entryOffset) else { return nil }
        // `run` tells what is wrong.
        return try? mapping(at: range.offset, entryAt: Int(entryOffset - l2.offset), in: l2)
    }

    /// The metadata page that holds the byte at `offset` of the file, if it is in memory; for this step only.
    private func pageInMemory(containing offset: UInt64) -> MetadataPage? {
        isolated.withState { state in
            let page = state.pages.pinned(at: offset.roundedDown(toMultipleOf: state.pages.pageSize))
            page?.unpin()
            return page
        }
    }

    /// Where the L2 table with this number is; nil when there is none.
    func l2Table(_ index: UInt64) async throws(BlockError) -> (host: UInt64, isShared: Bool)? {
        let page = try await page(containing: header.l1Offset + index * 8, .l1)
        defer { page.unpin() }
        return try l1Entry(index, in: page)
    }

    private func l1Entry(
        _ index: UInt64, in page: MetadataPage
    ) throws(BlockError) -> (host: UInt64, isShared: Bool)? {
        let position = Int(header.l1Offset + index * 8 - page.offset)
        do throws(EntryFault) {
            let table = try Qcow2Entry.l1(page.bytes.bigEndian(at: position), header)
            if let table { try checkOwnTables(table.host) }
            return table
        } catch {
            let range = ByteRange(offset: index * header.bytesPerL2, length: header.bytesPerL2).clamped(
                to: range)
            throw corrupt("L1 entry \(index), for \(range) of the disk, \(error.why)", range: range)
        }
    }

    /// How many of `limit` bytes from `offset` belong to L2 tables that do not exist; looks within one page.
    private func emptyTables(from offset: UInt64, limit: UInt64) async throws(BlockError) -> UInt64 {
        var index = offset / header.bytesPerL2
        var length = min(limit, header.bytesPerL2 - offset % header.bytesPerL2)
        let page = try await page(containing: header.l1Offset + index * 8, .l1)
        defer { page.unpin() }
        let pageEnd = page.offset + isolated.value.pages.pageSize
        while length < limit {
            index += 1
            guard header.l1Offset + index * 8 < pageEnd, try l1Entry(index, in: page) == nil else { break }
            length = min(limit, length + header.bytesPerL2)
        }
        return length
    }

    private func run(at offset: UInt64, limit: UInt64, table: UInt64) async throws(BlockError) -> Run {
        let unit = mappingUnit
        var result: Run?
        var position = offset
        let end = offset + limit
        while position < end {
            let index = position % header.bytesPerL2 / header.clusterSize
            let page = try await page(containing: table + index * header.l2EntrySize, .l2)
            defer { page.unpin() }
            let pageEnd = page.offset + isolated.value.pages.pageSize
            while position < end {
                let entryIndex = position % header.bytesPerL2 / header.clusterSize
                let entryOffset = table + entryIndex * header.l2EntrySize
                if entryOffset >= pageEnd || entryOffset < page.offset { break }
                let mapping = try mapping(at: position, entryAt: Int(entryOffset - page.offset), in: page)
                if case .compressed = mapping {
                    if let result { return result }
                    let clusterEnd =
                        position.roundedDown(toMultipleOf: header.clusterSize) + header.clusterSize
                    return Run(mapping: mapping, length: min(end, clusterEnd) - position)
                }
                let stepEnd = min(end, position.roundedDown(toMultipleOf: unit) + unit)
                if let found = result {
                    guard found.goesOn(with: mapping) else { return found }
                    result?.length += stepEnd - position
                } else {
                    result = Run(mapping: mapping, length: stepEnd - position)
                }
                position = stepEnd
            }
        }
        guard let result else { preconditionFailure("a lookup asks for at least one byte") }
        return result
    }

    /// The mapping of the byte at `offset`: data at exactly that byte's place.
    private func mapping(
        at offset: UInt64, entryAt position: Int, in page: MetadataPage
    ) throws(BlockError) -> ClusterMapping {
        do throws(EntryFault) {
            var mapping = try Qcow2Entry.l2(page.bytes.bigEndian(at: position), header)
            var within = offset % header.clusterSize
            if header.hasExtendedL2 {
                let subclusterSize = header.clusterSize / 32
                mapping = try Qcow2Entry.subcluster(
                    within / subclusterSize, of: mapping, bitmap: page.bytes.bigEndian(at: position + 8),
                    header)
                within %= subclusterSize
            }
            switch mapping {
            case .data(let host, let isShared):
                try checkHost(host)
                return .data(host: host + within, isShared: isShared)
            case .zeroAllocated(let host, let isShared):
                // Nothing is read there, so that it only matters to who writes.
                if !isReadOnly { try checkHost(host) }
                return .zeroAllocated(host: host + within, isShared: isShared)
            case .compressed(let cluster):
                try checkHost(cluster.host)
                return mapping
            case .unallocated, .zero:
                return mapping
            }
        } catch {
            let start = offset.roundedDown(toMultipleOf: header.clusterSize)
            let range = ByteRange(offset: start, length: header.clusterSize).clamped(to: range)
            throw corrupt("the L2 entry for \(range) of the disk \(error.why)", range: range)
        }
    }

    private func checkHost(_ host: UInt64) throws(EntryFault) {
        let fileSize = file.size
        guard host < fileSize else {
            throw EntryFault(why: "points to offset \(host), but the file ends at \(fileSize)")
        }
        try checkOwnTables(host)
    }

    private func checkOwnTables(_ host: UInt64) throws(EntryFault) {
        guard isReadOnly || !isOwnTable(host / clusterSize) else {
            throw EntryFault(why: "points to offset \(host), into the image's own tables")
        }
    }

    // MARK: Pages

    /// The metadata page that holds the byte at `offset` of the file, pinned; the caller unpins it.
    func page(
        containing offset: UInt64, _ kind: MetadataPage.Kind
    ) async throws(BlockError) -> MetadataPage {
        let start = offset.roundedDown(toMultipleOf: isolated.value.pages.pageSize)
        while true {
            if let page = isolated.value.pages.pinned(at: start) { return page }
            guard let loading = isolated.value.pages.loading(at: start) else { break }
            await loading.waitUntilLoaded()
        }
        let page = isolated.value.pages.addLoading(start, kind)
        do throws(BlockError) {
            try await load(page)
        } catch {
            isolated.value.pages.dropLoading(page)
            throw error
        }
        isolated.value.pages.finishLoading(page)
        return page
    }

    private func load(_ page: MetadataPage) async throws(BlockError) {
        let fileSize = file.size
        guard page.offset < fileSize else {
            throw corrupt("a table is said to be at offset \(page.offset), but the file ends at \(fileSize)")
        }
        let count = min(UInt64(page.buffer.count), fileSize - page.offset)
        try await file.read(
            ByteRange(offset: page.offset, length: count), into: page.buffer[0..<Int(count)])
        page.buffer[Int(count)..<page.buffer.count].bytes.fillWithZeroes()
    }
}

extension Qcow2Image.Run {
    /// Whether `next`, the mapping of the byte just behind this run, can be part of it.
    fileprivate func goesOn(with next: ClusterMapping) -> Bool {
        switch (mapping, next) {
        case (.unallocated, .unallocated), (.zero, .zero): true
        case (.data(let host, let isShared), .data(let nextHost, let nextIsShared)),
            (.zeroAllocated(let host, let isShared), .zeroAllocated(let nextHost, let nextIsShared)):
            nextHost == host + length && isShared == nextIsShared
        default: false
        }
    }
}
