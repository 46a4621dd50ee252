internal import BlockIO

/// The bytes of a disk that is mostly zeroes: it takes only the memory of what was written.
struct SparseBytes: Sendable {
    private static let pageSize: UInt64 = 4096
    private var pages: [UInt64: [UInt8]] = [:]

    /// The pieces of `range` that lie in one page each, with the positions of their first bytes in `range`.
    private static func pieces(
        _ range: ByteRange, _ body: (_ page: UInt64, _ inPage: Range<Int>, _ position: Int) -> Void
    ) {
        var rest = range
        while !rest.isEmpty {
            let start = rest.offset % Self.pageSize
            let piece = rest.prefix(Self.pageSize - start)
            body(
                rest.offset / Self.pageSize, Int(start)..<Int(start + piece.length),
                Int(rest.offset - range.offset))
            rest = rest.dropFirst(piece.length)
        }
    }

    func read(_ range: ByteRange, into bytes: UnsafeMutableRawBufferPointer) {
        Self.pieces(range) { page, inPage, position in
            let target = UnsafeMutableRawBufferPointer(rebasing: bytes[position..<position + inPage.count])
            if let page = pages[page] {
                page.withUnsafeBytes { target.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[inPage])) }
            } else {
                target.initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
    }

    mutating func write(_ range: ByteRange, from bytes: UnsafeRawBufferPointer) {
        Self.pieces(range) { page, inPage, position in
            let source = UnsafeRawBufferPointer(rebasing: bytes[position..<position + inPage.count])
            pages[page, default: [UInt8](repeating: 0, count: Int(Self.pageSize))]
                .withUnsafeMutableBytes {
                    UnsafeMutableRawBufferPointer(rebasing: $0[inPage]).copyMemory(from: source)
                }
        }
    }

    mutating func zero(_ range: ByteRange) {
        Self.pieces(range) { page, inPage, _ in
            if inPage.count == Int(Self.pageSize) {
                pages[page] = nil
            } else {
                pages[page]?.withUnsafeMutableBytes {
                    _ = UnsafeMutableRawBufferPointer(rebasing: $0[inPage])
                        .initializeMemory(as: UInt8.self, repeating: 0)
                }
            }
        }
    }

    func extents(in range: ByteRange) -> [Extent] {
        var extents: [Extent] = []
        var rest = range
        while !rest.isEmpty && extents.count < 64 {
            let page = rest.offset / Self.pageSize
            let isZero = pages[page] == nil
            var end = (page + 1) * Self.pageSize
            if isZero && pages.isEmpty { end = rest.end }
            while end < rest.end && (pages[end / Self.pageSize] == nil) == isZero { end += Self.pageSize }
            let piece = rest.prefix(end - rest.offset)
            extents.append(Extent(piece, isZero: isZero, isAllocated: true))
            rest = rest.dropFirst(piece.length)
        }
        return extents
    }
}
