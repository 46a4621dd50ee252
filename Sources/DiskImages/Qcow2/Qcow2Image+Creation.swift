internal import BlockIO

extension Qcow2Image {
    /// Makes a version-3 image in an empty file: header, refcount table and L1 table, large enough for the disk when it
    /// is full, at the file's start, and the rest where it comes to be needed.
    static func create(
        on file: HostFile, contentSize: UInt64, backing: (name: String, format: ImageFormat)?,
        clusterSize: UInt64
    ) async throws(BlockError) -> Qcow2Image {
        let bits = UInt32(clusterSize.trailingZeroBitCount)
        guard clusterSize.nonzeroBitCount == 1, Qcow2Header.clusterBits.contains(bits) else {
            throw BlockError(
                .invalid,
                "Couldn't create \(file.name): a cluster size of \(clusterSize) bytes is not a power of two "
                    + "between 512 and 2 MiB")
        }
        guard contentSize <= UInt64(Int64.max) - 511 else {
            throw BlockError(.invalid, "Couldn't create \(file.name): \(contentSize) bytes are too many")
        }
        var header = Qcow2Header(
            clusterBits: bits, size: contentSize.roundedUp(toMultipleOf: 512), l1Entries: 0, l1Offset: 0,
            refcountTableOffset: clusterSize, refcountTableClusters: 1)
        header.backingName = backing?.name
        header.backingFormat = backing?.format.rawValue
        let l1Entries = header.size.dividedRoundingUp(by: header.bytesPerL2)
        let tableClusters = refcountTableClusters(header, l1Entries: l1Entries)
        guard l1Entries * 8 <= Qcow2Header.maximumL1Bytes,
            tableClusters * clusterSize <= Qcow2Header.maximumRefcountTableBytes
        else {
            throw BlockError(
                .invalid,
                "Couldn't create \(file.name): a disk of \(contentSize) bytes needs clusters of more than "
                    + "\(clusterSize) bytes")
        }
        header.l1Entries = UInt32(l1Entries)
        header.refcountTableClusters = UInt32(tableClusters)
        header.l1Offset = (1 + tableClusters) * clusterSize
        let start = try header.encoded(name: file.name)
        let used = 1 + tableClusters + (l1Entries * 8).dividedRoundingUp(by: clusterSize)
        try await file.setSize(used * clusterSize)
        try await file.write(ByteRange(offset: 0, length: UInt64(start.count)), from: start.slice)
        let image = Qcow2Image(
            file, header: header, backing: backing.map { .notOpen($0.name) } ?? .none, isReadOnly: false,
            contentSize: contentSize, isNew: true)
        try await image.startRefcounts(used)
        return image
    }

    private func startRefcounts(_ used: UInt64) async throws(BlockError) {
        isolated.value.allocator.isPrepared = true
        isolated.value.allocator.position = used
        try await withMetadataLock { () async throws(BlockError) in
            for cluster in 0..<used {
                try await ensureRefcountBlock(for: cluster)
                try await setRefcount(of: cluster, to: 1)
            }
            try await writeBack()
        }
    }

    /// Enough for every cluster that the image can come to have.
    private static func refcountTableClusters(_ header: Qcow2Header, l1Entries: UInt64) -> UInt64 {
        let l1Clusters = (l1Entries * 8).dividedRoundingUp(by: header.clusterSize)
        let content = header.clusterCount + l1Entries + l1Clusters + 1
        var table: UInt64 = 1
        while true {
            let blocks = (content + table).dividedRoundingUp(by: header.refcountsPerBlock - 1) + 1
            let needed = (blocks * 8).dividedRoundingUp(by: header.clusterSize)
            if needed <= table { return table }
            table = needed
        }
    }
}

extension Qcow2Header {
    /// The first cluster of a new version-3 image.
    fileprivate func encoded(name: String) throws(BlockError) -> IOBuffer {
        let buffer = IOBuffer(count: Int(clusterSize))
        let bytes = buffer.bytes
        bytes.fillWithZeroes()
        let headerLength = 112
        bytes.storeBigEndian(Self.magic, at: 0)
        bytes.storeBigEndian(version, at: 4)
        bytes.storeBigEndian(clusterBits, at: 20)
        bytes.storeBigEndian(size, at: 24)
        bytes.storeBigEndian(l1Entries, at: 36)
        bytes.storeBigEndian(l1Offset, at: 40)
        bytes.storeBigEndian(refcountTableOffset, at: 48)
        bytes.storeBigEndian(refcountTableClusters, at: 56)
        bytes.storeBigEndian(refcountOrder, at: 96)
        bytes.storeBigEndian(UInt32(headerLength), at: 100)
        var position = headerLength
        if let backingName, let backingFormat {
            let (path, format) = (Array(backingName.utf8), Array(backingFormat.utf8))
            let pathPosition = position + 8 + (format.count + 7) & ~7 + 8
            guard path.count <= Self.maximumBackingNameLength, path.count <= bytes.count - pathPosition,
                !path.contains(0)
            else {
                throw BlockError(
                    .invalid,
                    "Couldn't create \(name): the name of its backing file, \(backingName), is too long to be recorded"
                )
            }
            bytes.storeBigEndian(UInt32(0xe279_2aca), at: position)
            bytes.storeBigEndian(UInt32(format.count), at: position + 4)
            format.withUnsafeBytes { buffer[position + 8..<bytes.count].bytes.copyBytesQuickly(from: $0) }
            position = pathPosition
            path.withUnsafeBytes { buffer[position..<bytes.count].bytes.copyBytesQuickly(from: $0) }
            bytes.storeBigEndian(UInt64(position), at: 8)
            bytes.storeBigEndian(UInt32(path.count), at: 16)
        }
        return buffer
    }
}
