internal import BlockIO

/// Reads a header from an image's first bytes, distrusting every one of them.
struct Qcow2HeaderParser {
    /// The start of the file: its first cluster, or all of it when it is shorter.
    private let bytes: UnsafeRawBufferPointer
    private let fileSize: UInt64
    private let name: String

    private enum ExtensionType {
        static let end: UInt32 = 0
        static let backingFormat: UInt32 = 0xe279_2aca
        static let featureNames: UInt32 = 0x6803_f857
        static let externalData: UInt32 = 0x4441_5441
        static let encryption: UInt32 = 0x0537_be77
    }

    /// How many bytes from the start of a file with these first bytes (at least 24, or all) the parser wants.
    static func wantedBytes(_ start: UnsafeRawBufferPointer) -> UInt64 {
        guard start.count >= 24 else { return 512 }
        let bits: UInt32 = start.bigEndian(at: 20)
        return Qcow2Header.clusterBits.contains(bits) ? 1 << UInt64(bits) : 512
    }

    /// Parses and validates; throws `.unsupported` for what we do not do and `.corrupt` for what breaks the format.
    static func parse(
        _ bytes: UnsafeRawBufferPointer, fileSize: UInt64, name: String
    ) throws(BlockError) -> Qcow2Header {
        try Qcow2HeaderParser(bytes: bytes, fileSize: fileSize, name: name).parse()
    }

    private func parse() throws(BlockError) -> Qcow2Header {
        guard bytes.count >= 72 else { throw corrupt("its header is cut off after \(bytes.count) bytes") }
        guard bytes.bigEndian(at: 0, as: UInt32.self) == Qcow2Header.magic else {
            throw corrupt("it does not begin like a qcow2 image")
        }
        let version: UInt32 = bytes.bigEndian(at: 4)
        guard version == 2 || version == 3 else {
            throw unsupported("qcow2 version \(version) is not supported, only versions 2 and 3")
        }
        let clusterBits: UInt32 = bytes.bigEndian(at: 20)
        guard Qcow2Header.clusterBits.contains(clusterBits) else {
            throw corrupt("its cluster size, 2 to the power of \(clusterBits), is not between 512 and 2 MiB")
        }
        var header = Qcow2Header(
            version: version, clusterBits: clusterBits, size: bytes.bigEndian(at: 24),
            l1Entries: bytes.bigEndian(at: 36), l1Offset: bytes.bigEndian(at: 40),
            refcountTableOffset: bytes.bigEndian(at: 48), refcountTableClusters: bytes.bigEndian(at: 56),
            snapshotCount: bytes.bigEndian(at: 60))
        let headerLength = try readVersion3Fields(&header)
        try readExtensions(&header, from: headerLength)
        try checkFeatures(header)
        let encryption: UInt32 = bytes.bigEndian(at: 32)
        guard encryption == 0 else {
            throw unsupported("it is encrypted (method \(encryption)), which is not supported")
        }
        try readCompression(&header, headerLength: headerLength)
        header.backingName = try backingName(clusterSize: header.clusterSize)
        try checkLayout(header)
        return header
    }

    private func readVersion3Fields(_ header: inout Qcow2Header) throws(BlockError) -> Int {
        guard header.version >= 3 else { return 72 }
        guard bytes.count >= 104 else { throw corrupt("its header is cut off after \(bytes.count) bytes") }
        header.incompatible = bytes.bigEndian(at: 72)
        header.compatible = bytes.bigEndian(at: 80)
        header.autoclear = bytes.bigEndian(at: 88)
        header.refcountOrder = bytes.bigEndian(at: 96)
        let length: UInt32 = bytes.bigEndian(at: 100)
        guard header.refcountOrder <= 6 else {
            throw corrupt("its refcounts are said to have 2 to the power of \(header.refcountOrder) bits")
        }
        guard length >= 104, length % 8 == 0, UInt64(length) <= min(header.clusterSize, UInt64(bytes.count))
        else {
            throw corrupt("its header is said to have \(length) bytes")
        }
        return Int(length)
    }

    private func readExtensions(_ header: inout Qcow2Header, from start: Int) throws(BlockError) {
        var limit = min(bytes.count, Int(header.clusterSize))
        let backingOffset: UInt64 = bytes.bigEndian(at: 8)
        if backingOffset >= UInt64(start), backingOffset < UInt64(limit) { limit = Int(backingOffset) }
        var position = start
        while position + 8 <= limit {
            let type: UInt32 = bytes.bigEndian(at: position)
            let length = Int(bytes.bigEndian(at: position + 4, as: UInt32.self))
            if type == ExtensionType.end { return }
            position += 8
            guard length <= limit - position else {
                throw corrupt("a header extension of \(length) bytes at offset \(position) is too long")
            }
            let data = UnsafeRawBufferPointer(rebasing: bytes[position..<position + length])
            switch type {
            case ExtensionType.backingFormat:
                header.backingFormat = try text(data, what: "backing file's format")
            case ExtensionType.featureNames:
                header.featureNames = featureNames(data)
            case ExtensionType.externalData:
                throw unsupported("it keeps its data in another file, which is not supported")
            case ExtensionType.encryption:
                throw unsupported("it is encrypted, which is not supported")
            default:
                // They mean nothing to us and stay where they are.
                header.hasUnknownExtensions = true
            }
            position += (length + 7) & ~7
        }
    }

    private func featureNames(_ data: UnsafeRawBufferPointer) -> [Qcow2Features.Name] {
        stride(from: 0, through: data.count - 48, by: 48).map { start in
            let text = data[start + 2..<start + 48].prefix { $0 != 0 }
            return Qcow2Features.Name(
                type: data[start], bit: data[start + 1], text: String(decoding: text, as: UTF8.self))
        }
    }

    private func checkFeatures(_ header: Qcow2Header) throws(BlockError) {
        let unknown = header.incompatible & ~Qcow2Features.Incompatible.known
        if unknown != 0 {
            let names = (UInt8(0)..<64).filter { unknown & (1 << $0) != 0 }.map { bit in
                header.featureNames.first { $0.type == 0 && $0.bit == bit }?.text ?? "number \(bit)"
            }
            throw unsupported("it uses features that are not supported: \(names.joined(separator: ", "))")
        }
        if header.incompatible & Qcow2Features.Incompatible.corrupt != 0 {
            throw corrupt("it is marked as corrupt; run qemu-img check -r all on it first")
        }
        if header.incompatible & Qcow2Features.Incompatible.externalData != 0 {
            throw unsupported("it keeps its data in another file, which is not supported")
        }
        if header.hasExtendedL2, header.clusterBits < 14 {
            throw corrupt("it has extended L2 entries, but clusters of only \(header.clusterSize) bytes")
        }
    }

    private func readCompression(_ header: inout Qcow2Header, headerLength: Int) throws(BlockError) {
        let type = headerLength > 104 ? bytes[104] : 0
        guard let compression = Qcow2Header.Compression(rawValue: type) else {
            throw unsupported("its compression type \(type) is not supported, only zlib and zstd")
        }
        let isMarked = header.incompatible & Qcow2Features.Incompatible.compressionType != 0
        guard isMarked == (compression != .zlib) else {
            throw corrupt("its compression type \(compression) and its feature bits contradict each other")
        }
        header.compression = compression
    }

    private func backingName(clusterSize: UInt64) throws(BlockError) -> String? {
        let offset: UInt64 = bytes.bigEndian(at: 8)
        let length: UInt32 = bytes.bigEndian(at: 16)
        guard offset != 0 else { return nil }
        guard length <= Qcow2Header.maximumBackingNameLength else {
            throw corrupt("the name of its backing file is \(length) bytes long")
        }
        let limit = min(clusterSize, UInt64(bytes.count))
        guard offset <= limit, UInt64(length) <= limit - offset else {
            throw corrupt("the name of its backing file lies outside of the header, at offset \(offset)")
        }
        guard length > 0 else { return nil }
        let start = Int(offset)
        return try text(
            UnsafeRawBufferPointer(rebasing: bytes[start..<start + Int(length)]), what: "backing file's name")
    }

    private func text(_ data: UnsafeRawBufferPointer, what: String) throws(BlockError) -> String {
        guard let text = String(validating: data, as: UTF8.self), !data.contains(0) else {
            throw corrupt("the \(what) is not valid text")
        }
        return text
    }

    private func checkLayout(_ header: Qcow2Header) throws(BlockError) {
        guard header.size <= UInt64(Int64.max) else {
            throw corrupt("its size, \(header.size), is too large")
        }
        guard UInt64(header.l1Entries) * 8 <= Qcow2Header.maximumL1Bytes else {
            throw corrupt("its L1 table with \(header.l1Entries) entries is larger than 32 MiB")
        }
        guard UInt64(header.l1Entries) >= header.size.dividedRoundingUp(by: header.bytesPerL2) else {
            throw corrupt(
                "its L1 table with \(header.l1Entries) entries is too small for a disk of \(header.size) bytes"
            )
        }
        let tableBytes = UInt64(header.refcountTableClusters) << UInt64(header.clusterBits)
        guard tableBytes <= Qcow2Header.maximumRefcountTableBytes, tableBytes > 0 else {
            throw corrupt("its refcount table of \(tableBytes) bytes is not between one cluster and 8 MiB")
        }
        try checkTable("L1", header.l1Offset, UInt64(header.l1Entries) * 8, header)
        try checkTable("refcount", header.refcountTableOffset, tableBytes, header)
        guard !header.l1Range.overlaps(header.refcountTableRange) else {
            throw corrupt("its L1 table and its refcount table overlap")
        }
    }

    private func checkTable(
        _ what: String, _ offset: UInt64, _ length: UInt64, _ header: Qcow2Header
    ) throws(BlockError) {
        guard length > 0 else { return }
        guard offset % header.clusterSize == 0, offset >= header.clusterSize else {
            throw corrupt("its \(what) table is at offset \(offset), where none can be")
        }
        guard offset <= fileSize, length <= fileSize - offset else {
            throw corrupt(
                "its \(what) table of \(length) bytes at offset \(offset) reaches beyond the end of the file, "
                    + "which has \(fileSize) bytes")
        }
    }

    private func corrupt(_ why: String) -> BlockError {
        BlockError(.corrupt, "Couldn't open \(name) as a qcow2 image: \(why)")
    }

    private func unsupported(_ why: String) -> BlockError {
        BlockError(.unsupported, "Couldn't open \(name) as a qcow2 image: \(why)")
    }
}
