internal import BlockIO

extension Qcow2Image {
    /// Makes a version-3 image in an empty file: header, refcount table and L1 table, large enough for the disk when it
    /// is full, at the file's start, and the rest where it comes to be needed.
    static func create(
        on file: HostFile, contentSize: UInt64, backing: (name: String, format: ImageFormat)?,
        clusterSize: UInt64, options: Qcow2Options = Qcow2Options()
    ) async throws(BlockError) -> Qcow2Image {
        let header = try plan(
            name: file.name, contentSize: contentSize, backing: backing, clusterSize: clusterSize)
        let start = try header.encoded(name: file.name)
        let used = header.l1Range.end.dividedRoundingUp(by: clusterSize)
        try await file.setSize(used * clusterSize)
        let image = Qcow2Image(planned: header, on: file, contentSize: contentSize, options: options)
        try await image.startRefcounts(used)
        // Last, so that what a kill leaves before is no image yet.
        try await file.write(ByteRange(offset: 0, length: UInt64(start.count)), from: start.slice)
        return image
    }

    /// Takes up an image that `create` made with these arguments and whose writer was killed at any point; see
    /// `TargetImage.resume`.
    static func resume(
        on file: HostFile, contentSize: UInt64, backing: (name: String, format: ImageFormat)?,
        clusterSize: UInt64, options: Qcow2Options = Qcow2Options()
    ) async throws(BlockError) -> Qcow2Image {
        let planned = try plan(
            name: file.name, contentSize: contentSize, backing: backing, clusterSize: clusterSize)
        let found = try await ImageFiles.readHeader(file)
        guard found == planned else {
            throw BlockError(
                .invalid,
                "Couldn't go on with \(file.name): it is not the image that was begun there "
                    + "(found \(found.summary), expected \(planned.summary))")
        }
        let image = Qcow2Image(planned: planned, on: file, contentSize: contentSize, options: options)
        guard try await image.dropLeaks() else {
            throw image.corrupt("clusters of an image that was made here are compressed or shared")
        }
        return image
    }

    private convenience init(
        planned header: Qcow2Header, on file: HostFile, contentSize: UInt64, options: Qcow2Options
    ) {
        self.init(
            file, header: header, backing: header.backingName.map(Backing.notOpen) ?? .none,
            isReadOnly: false, contentSize: contentSize, isNew: true, options: options)
    }

    /// The header of a new image.
    private static func plan(
        name: String, contentSize: UInt64, backing: (name: String, format: ImageFormat)?, clusterSize: UInt64
    ) throws(BlockError) -> Qcow2Header {
        let bits = UInt32(clusterSize.trailingZeroBitCount)
        guard clusterSize.nonzeroBitCount == 1, Qcow2Header.clusterBits.contains(bits) else {
            throw BlockError(
                .invalid,
                "Couldn't create \(name): a cluster size of \(clusterSize) bytes is not a power of two "
                    + "between 512 and 2 MiB")
        }
        guard contentSize <= UInt64(Int64.max) - 511 else {
            throw BlockError(.invalid, "Couldn't create \(name): \(contentSize) bytes are too many")
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
                "Couldn't create \(name): a disk of \(contentSize) bytes needs clusters of more than "
                    + "\(clusterSize) bytes")
        }
        header.l1Entries = UInt32(l1Entries)
        header.refcountTableClusters = UInt32(tableClusters)
        header.l1Offset = (1 + tableClusters) * clusterSize
        return header
    }

    private func startRefcounts(_ used: UInt64) async throws(BlockError) {
        isolated.value.allocator.isPrepared = true
        isolated.value.allocator.position = used
        try await withMetadataLock { () async throws(BlockError) in
            for cluster in 0..<used {
                try await ensureRefcountBlock(for: cluster)
                try await setRefcount(of: cluster, to: 1)
            }
        }
        try await withWriteback { () async throws(BlockError) in try await writeBack() }
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
    /// For people.
    fileprivate var summary: String {
        "\(size) bytes in clusters of \(clusterSize)"
            + (backingName.map { " on \($0) of format \(backingFormat ?? "unknown")" } ?? "")
            + (snapshotCount > 0 ? ", with internal snapshots" : "")
    }

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
