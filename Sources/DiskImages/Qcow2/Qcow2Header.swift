internal import BlockIO

/// The header of a qcow2 image: its first cluster, parsed and checked (qcow2.txt, "Header").
///
/// All numbers are big-endian. Version 2 has 72 bytes; version 3 goes on with the feature bits, the width of a
/// refcount and its own length, of which the compression type is an optional extension. Header extensions follow,
/// each a type, a length and data padded to eight bytes, and then the backing file's name without terminator.
struct Qcow2Header: Sendable, Hashable {
    static let magic: UInt32 = 0x5146_49fb
    static let maximumL1Bytes: UInt64 = 32 << 20
    static let maximumRefcountTableBytes: UInt64 = 8 << 20
    static let maximumBackingNameLength = 1023
    static let clusterBits: ClosedRange<UInt32> = 9...21

    enum Compression: UInt8, Sendable { case zlib = 0, zstd = 1 }

    var version: UInt32 = 3
    var clusterBits: UInt32
    /// The virtual disk's size in bytes.
    var size: UInt64
    /// The number of 8-byte entries.
    var l1Entries: UInt32
    var l1Offset: UInt64
    var refcountTableOffset: UInt64
    var refcountTableClusters: UInt32
    var snapshotCount: UInt32 = 0
    var incompatible: UInt64 = 0
    var compatible: UInt64 = 0
    var autoclear: UInt64 = 0
    /// A refcount has 2 to the power of this bits.
    var refcountOrder: UInt32 = 4
    var compression = Compression.zlib
    var backingName: String?
    var backingFormat: String?
    var featureNames: [Qcow2Features.Name] = []
    /// There are header extensions that we do not know, which may use clusters.
    var hasUnknownExtensions = false

    var clusterSize: UInt64 { 1 << UInt64(clusterBits) }
    var hasExtendedL2: Bool { incompatible & Qcow2Features.Incompatible.extendedL2 != 0 }
    /// Bytes of an L2 entry.
    var l2EntrySize: UInt64 { hasExtendedL2 ? 16 : 8 }
    var entriesPerL2: UInt64 { clusterSize / l2EntrySize }
    /// Bytes of the disk that one L2 table, and so one L1 entry, describes.
    var bytesPerL2: UInt64 { entriesPerL2 << UInt64(clusterBits) }
    var clusterCount: UInt64 { size.dividedRoundingUp(by: clusterSize) }
    var refcountsPerBlock: UInt64 { (clusterSize * 8) >> UInt64(refcountOrder) }
    var refcountTableEntries: UInt64 { refcountTableRange.length / 8 }

    var l1Range: ByteRange { ByteRange(offset: l1Offset, length: UInt64(l1Entries) * 8) }
    var refcountTableRange: ByteRange {
        ByteRange(offset: refcountTableOffset, length: UInt64(refcountTableClusters) << UInt64(clusterBits))
    }

    /// Why this image may be read but not written, as the end of a sentence; nil when it may be written.
    var writeObstacle: String? {
        if incompatible & Qcow2Features.Incompatible.dirty != 0 {
            return "it was not closed properly (its dirty bit is set); run qemu-img check -r all on it first"
        }
        if hasExtendedL2 {
            return "writing to images with extended L2 entries (subclusters) is not supported"
        }
        return nil
    }
}
