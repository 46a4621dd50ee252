internal import BlockIO

/// A piece of an image's metadata (L1 and L2 tables, refcount table and blocks) in memory.
///
/// Only touched on the image's engine. A page that is pinned, dirty or loading stays.
final class MetadataPage {
    /// In which order dirty pages have to be written; see `Qcow2Image+Writeback`.
    enum Kind: Int, CaseIterable { case refcountBlock, refcountTable, l2, l1 }

    fileprivate(set) var offset: UInt64
    fileprivate(set) var kind: Kind
    let buffer: IOBuffer
    fileprivate(set) var isLoading = true
    /// What the file does not have yet, in whole sectors of the page; empty when it has everything.
    fileprivate(set) var dirty = 0..<0
    fileprivate var pins = 0
    fileprivate var wasUsed = true
    fileprivate var waiting: [CheckedContinuation<Void, Never>] = []

    fileprivate init(offset: UInt64, kind: Kind, size: Int) {
        self.offset = offset
        self.kind = kind
        buffer = IOBuffer(count: size)
    }

    static let sectorSize = 512

    var isDirty: Bool { !dirty.isEmpty }

    /// The page's bytes, for reading.
    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(buffer.bytes) }

    /// Where in the file these bytes of the page are.
    func range(of bytes: Range<Int>) -> ByteRange {
        ByteRange(offset: offset + UInt64(bytes.lowerBound), length: UInt64(bytes.count))
    }

    func unpin() { pins -= 1 }
}

/// The pages of one image that are in memory, at most so many (but those that cannot go stay).
///
/// Pages are replaced by the clock algorithm: the hand passes over the slots, takes a page that was not used since it
/// last came by, and spares the others once. Dirty pages are never replaced; the writers see to it that they are
/// written before they fill the cache.
struct MetadataPages {
    let pageSize: UInt64
    private let capacity: Int
    private var byOffset: [UInt64: MetadataPage] = [:]
    private var slots: [MetadataPage] = []
    private var hand = 0
    private(set) var dirtyCount = 0

    /// `bytes` is the bound of all pages together.
    init(clusterSize: UInt64, bytes: UInt64 = 8 << 20) {
        pageSize = min(clusterSize, 16384)
        capacity = max(16, Int(min(bytes / pageSize, 4096)))
    }

    var count: Int { slots.count }
    /// So much is dirty that it should be written before more is.
    var isMostlyDirty: Bool { dirtyCount > capacity / 2 }

    /// So much is dirty that nothing else finds a place soon.
    var isNearlyFull: Bool { dirtyCount > capacity - capacity / 8 }

    /// The page, pinned, if it is in memory and loaded.
    mutating func pinned(at offset: UInt64) -> MetadataPage? {
        guard let page = byOffset[offset], !page.isLoading else { return nil }
        page.wasUsed = true
        page.pins += 1
        return page
    }

    /// The page that somebody else is loading.
    func loading(at offset: UInt64) -> MetadataPage? {
        guard let page = byOffset[offset], page.isLoading else { return nil }
        return page
    }

    /// Makes a page that the caller is to load; `finishLoading` or `dropLoading` follows.
    mutating func addLoading(_ offset: UInt64, _ kind: MetadataPage.Kind) -> MetadataPage {
        precondition(byOffset[offset] == nil, "a page is loaded once")
        let page = newPage(offset, kind)
        byOffset[offset] = page
        return page
    }

    /// The page has its content; it comes back pinned for the caller.
    func finishLoading(_ page: MetadataPage) {
        page.isLoading = false
        page.pins += 1
        wake(page)
    }

    /// The page could not be loaded; whoever waited for it tries again.
    mutating func dropLoading(_ page: MetadataPage) {
        byOffset[page.offset] = nil
        slots.removeAll { $0 === page }
        hand = 0
        wake(page)
    }

    /// Makes a dirty page of zeroes for a place in the file that nothing is read from; it comes back pinned. nil when the
    /// place is being read all the same: the image has a table where its refcounts say that nothing is.
    mutating func addZeroed(_ offset: UInt64, _ kind: MetadataPage.Kind) -> MetadataPage? {
        let page: MetadataPage
        if let old = byOffset[offset] {
            guard !old.isLoading else { return nil }
            page = old
            page.kind = kind
        } else {
            page = newPage(offset, kind)
            page.isLoading = false
            byOffset[offset] = page
        }
        page.buffer.bytes.fillWithZeroes()
        page.pins += 1
        markDirty(page, 0..<page.buffer.count)
        return page
    }

    /// Gives up a new page whose place is free again; before it is a table once more, it is zeroed.
    mutating func abandon(_ offset: UInt64) {
        if let page = byOffset[offset] { markClean(page) }
    }

    /// Says that these bytes of the page were changed, some at least.
    mutating func markDirty(_ page: MetadataPage, _ bytes: Range<Int>) {
        precondition(!bytes.isEmpty && bytes.upperBound <= page.buffer.count, "a change is within its page")
        let sector = MetadataPage.sectorSize
        let changed = bytes.lowerBound / sector * sector..<(bytes.upperBound + sector - 1) / sector * sector
        if page.isDirty {
            page.dirty =
                min(
                    page.dirty.lowerBound, changed.lowerBound)..<max(
                    page.dirty.upperBound, changed.upperBound)
        } else {
            page.dirty = changed
            dirtyCount += 1
        }
    }

    /// Said just before the page's dirty part is written: what is changed from then on makes it dirty again.
    mutating func markClean(_ page: MetadataPage) {
        guard page.isDirty else { return }
        page.dirty = 0..<0
        dirtyCount -= 1
    }

    /// The dirty pages of a kind in the order of the file, pinned.
    func pinnedDirty(_ kind: MetadataPage.Kind) -> [MetadataPage] {
        guard dirtyCount > 0 else { return [] }
        let pages = slots.filter { $0.isDirty && $0.kind == kind }.sorted { $0.offset < $1.offset }
        for page in pages { page.pins += 1 }
        return pages
    }

    private func wake(_ page: MetadataPage) {
        let waiting = page.waiting
        page.waiting = []
        for continuation in waiting { continuation.resume() }
    }

    private mutating func newPage(_ offset: UInt64, _ kind: MetadataPage.Kind) -> MetadataPage {
        if slots.count >= capacity, let victim = findVictim() {
            byOffset[victim.offset] = nil
            victim.offset = offset
            victim.kind = kind
            victim.isLoading = true
            victim.wasUsed = true
            return victim
        }
        let page = MetadataPage(offset: offset, kind: kind, size: Int(pageSize))
        slots.append(page)
        return page
    }

    private mutating func findVictim() -> MetadataPage? {
        for _ in 0..<2 * slots.count {
            hand = hand + 1 < slots.count ? hand + 1 : 0
            let page = slots[hand]
            if page.isLoading || page.isDirty || page.pins > 0 { continue }
            if page.wasUsed { page.wasUsed = false } else { return page }
        }
        return nil
    }
}

extension MetadataPage {
    /// Waits until the page is loaded, or dropped.
    func waitUntilLoaded() async {
        await withCheckedContinuation { waiting.append($0) }
    }
}
