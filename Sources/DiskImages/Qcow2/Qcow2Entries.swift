/// What an L2 entry says about one cluster or subcluster (qcow2.txt, "Cluster mapping").
///
///     standard:    63 copied | 62 compressed = 0 | 61-56 reserved | 55-9 host offset | 8-1 reserved | 0 reads as zero
///     compressed:  62 compressed = 1 | x…61 number of further 512-byte sectors | 0…x-1 host offset of the data
///                  with x = 62 - (cluster bits - 8)
///     extended:    a second word, for each of 32 subclusters a bit "allocated" (31-0) and a bit "zero" (63-32)
enum ClusterMapping: Hashable, Sendable {
    /// The backing file says what is there, or nothing does.
    case unallocated
    /// Zeroes, without a place in the file.
    case zero
    /// Zeroes, whatever stands in the host cluster that is kept for it.
    case zeroAllocated(host: UInt64, isShared: Bool)
    /// Data at a place that only this entry refers to, unless it is shared with an internal snapshot.
    case data(host: UInt64, isShared: Bool)
    case compressed(CompressedCluster)
}

/// Where a compressed cluster's data lies; it may begin anywhere, and share its first and last sector.
struct CompressedCluster: Hashable, Sendable {
    var host: UInt64
    /// At most this many bytes; the data itself knows where it ends.
    var length: UInt64

    init(entry: UInt64, clusterBits: UInt32) {
        let offsetBits = UInt64(62 - (clusterBits - 8))
        host = entry & (1 << offsetBits - 1)
        let sectors = entry >> offsetBits & (1 << UInt64(clusterBits - 8) - 1)
        length = (sectors + 1) * 512 - host % 512
    }

    init(host: UInt64, length: UInt64) {
        self.host = host
        self.length = length
    }
}

/// Why an entry makes no sense, as the end of a sentence.
struct EntryFault: Error, Hashable { var why: String }

enum Qcow2Entry {
    static let copied: UInt64 = 1 << 63
    static let compressed: UInt64 = 1 << 62
    static let zero: UInt64 = 1
    static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00
    static let l1Reserved: UInt64 = 0x7f00_0000_0000_01ff
    static let l2Reserved: UInt64 = 0x3f00_0000_0000_01fe
    static let refcountTableReserved: UInt64 = 0x1ff

    /// The host offset of an L2 table and whether it is shared with an internal snapshot; nil when there is none.
    static func l1(
        _ entry: UInt64, _ header: Qcow2Header
    ) throws(EntryFault) -> (host: UInt64, isShared: Bool)? {
        guard entry & l1Reserved == 0 else { throw EntryFault(why: "has reserved bits set") }
        let host = entry & offsetMask
        guard host != 0 else { return nil }
        guard host % header.clusterSize == 0 else {
            throw EntryFault(why: "points to offset \(host), which is no multiple of the cluster size")
        }
        return (host, entry & copied == 0)
    }

    /// What a standard entry says, or the first word of an extended one.
    static func l2(_ entry: UInt64, _ header: Qcow2Header) throws(EntryFault) -> ClusterMapping {
        if entry & compressed != 0 {
            return .compressed(CompressedCluster(entry: entry, clusterBits: header.clusterBits))
        }
        guard entry & l2Reserved == 0 else { throw EntryFault(why: "has reserved bits set") }
        let isZero = entry & zero != 0
        guard !isZero || (header.version >= 3 && !header.hasExtendedL2) else {
            throw EntryFault(why: "has the zero flag, which this image must not use")
        }
        let host = entry & offsetMask
        guard host % header.clusterSize == 0 else {
            throw EntryFault(why: "points to offset \(host), which is no multiple of the cluster size")
        }
        let isShared = entry & copied == 0
        guard host != 0 else { return isZero ? .zero : .unallocated }
        return isZero ? .zeroAllocated(host: host, isShared: isShared) : .data(host: host, isShared: isShared)
    }

    /// What subcluster `index` of a cluster with an extended entry is.
    static func subcluster(
        _ index: UInt64, of mapping: ClusterMapping, bitmap: UInt64, _ header: Qcow2Header
    ) throws(EntryFault) -> ClusterMapping {
        if case .compressed = mapping {
            guard bitmap == 0 else { throw EntryFault(why: "is compressed and has subclusters") }
            return mapping
        }
        let isAllocated = bitmap >> index & 1 != 0
        let isZero = bitmap >> (32 + index) & 1 != 0
        guard !(isAllocated && isZero) else {
            throw EntryFault(why: "has a subcluster that is both data and zero")
        }
        if isZero { return .zero }
        guard isAllocated else { return .unallocated }
        guard case .data(let host, let isShared) = mapping else {
            throw EntryFault(why: "has data in a subcluster, but no place for it")
        }
        return .data(host: host + index * (header.clusterSize / 32), isShared: isShared)
    }
}

extension ClusterMapping {
    /// The L2 entry that says this; never for a compressed cluster, which we do not write.
    var entry: UInt64 {
        switch self {
        case .unallocated: 0
        case .zero: Qcow2Entry.zero
        case .zeroAllocated(let host, let isShared):
            host | Qcow2Entry.zero | (isShared ? 0 : Qcow2Entry.copied)
        case .data(let host, let isShared): host | (isShared ? 0 : Qcow2Entry.copied)
        case .compressed: preconditionFailure("compressed clusters are never written")
        }
    }
}
