internal import TestKit

@testable internal import DiskImages

/// Counts the references of an image without internal snapshots and holds them against its refcounts.
struct Qcow2Checker {
    /// Clusters that are counted more often than they are used.
    private(set) var leaks = 0
    private(set) var clusters = 0

    /// Throws what is more than a leak.
    init(_ file: [UInt8]) throws {
        try file.withUnsafeBytes { try check($0) }
    }

    private mutating func check(_ file: UnsafeRawBufferPointer) throws {
        let start = UnsafeRawBufferPointer(rebasing: file[..<min(file.count, 2 << 20)])
        let header = try Qcow2HeaderParser.parse(start, fileSize: UInt64(file.count), name: "the image")
        let size = Int(header.clusterSize)
        clusters = (file.count + size - 1) / size
        var references: [Int: Int] = [0: 1]
        func refer(_ offset: UInt64, _ count: Int, _ what: String) throws {
            guard offset % header.clusterSize == 0, offset > 0, Int(offset) + count * size <= clusters * size
            else {
                throw TestKitError("\(what) is at offset \(offset) of \(file.count)")
            }
            for index in 0..<count { references[Int(offset) / size + index, default: 0] += 1 }
        }
        try refer(header.l1Offset, (Int(header.l1Entries) * 8 + size - 1) / size, "the L1 table")
        let tableClusters = Int(header.refcountTableClusters)
        try refer(header.refcountTableOffset, tableClusters, "the refcount table")
        var blocks: [UInt64] = []
        for index in 0..<tableClusters * size / 8 {
            let entry: UInt64 = file.bigEndian(at: Int(header.refcountTableOffset) + index * 8)
            blocks.append(entry)
            if entry != 0 { try refer(entry, 1, "refcount block \(index)") }
        }
        for index in 0..<Int(header.l1Entries) {
            let table = try Qcow2Entry.l1(file.bigEndian(at: Int(header.l1Offset) + index * 8), header)
            guard let table else { continue }
            try refer(table.host, 1, "L2 table \(index)")
            for entry in 0..<Int(header.entriesPerL2) {
                let word: UInt64 = file.bigEndian(at: Int(table.host) + entry * 8)
                guard word != 0 else { continue }
                switch try Qcow2Entry.l2(word, header) {
                case .unallocated, .zero, .compressed: break
                case .data(let host, let isShared), .zeroAllocated(let host, let isShared):
                    guard !isShared else {
                        throw TestKitError("cluster \(entry) of table \(index) is shared")
                    }
                    try refer(host, 1, "cluster \(entry) of table \(index)")
                }
            }
        }
        for cluster in 0..<clusters {
            let block = cluster / Int(header.refcountsPerBlock)
            var count: UInt64 = 0
            if block < blocks.count, blocks[block] != 0 {
                let place = RefcountPlace(UInt64(cluster), header)
                count = place.load(file, at: Int(blocks[block]) + place.byte)
            }
            let used = references[cluster] ?? 0
            if used > 1 { throw TestKitError("host cluster \(cluster) is used \(used) times") }
            if Int(count) < used { throw TestKitError("host cluster \(cluster) is used and not counted") }
            if Int(count) > used { leaks += 1 }
        }
    }
}
