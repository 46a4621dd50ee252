internal import BlockIO

/// A row of bits in a mapped file, one for each cluster or block of a drive, all clear at first.
///
/// Its space is taken a page (32,768 bits) at a time, when the first bit of that page is set: a store cannot fail then,
/// and a page without space is all clear and is never touched. Where there is a row of marks, one for each page, whose space
/// was taken with the file, a page that is set in one step takes none: its mark stands for it. So a hole of a TiB costs a few
/// bits, whatever a bit is. Used on one engine's thread, as long as its file and `Pages` are there: it keeps neither alive, as
/// it is copied several times for each thing that a guest writes, and counting references would take longer than the rest.
struct BitSection {
    /// Bits in a page of the file.
    static let bitsPerPage = 4096 * 8

    /// What a page of bits is.
    fileprivate enum Page: UInt8 {
        /// All clear, without space.
        case clear
        /// As its words say.
        case stored
        /// All set, as its mark says, and without space.
        case whole
    }

    /// What each page of some bits is.
    final class Pages: Sendable {
        // SAFETY: the address is constant; what is there is touched by sections only, on their engine's thread.
        fileprivate nonisolated(unsafe) let pages: UnsafeMutableBufferPointer<Page>

        /// All clear.
        init(ofBits count: Int) {
            pages = .allocate(capacity: BitSection.length(of: count) / 4096)
            pages.initialize(repeating: .clear)
        }

        deinit { pages.deallocate() }
    }

    /// How many bits there are.
    let count: Int
    private unowned(unsafe) let file: MappedFile
    /// Where in the file the bits begin, a multiple of a page.
    private let start: Int
    private let words: UnsafeMutablePointer<UInt64>
    /// The marks of pages that are all set; nil where there are none.
    private let marks: UnsafeMutablePointer<UInt64>?
    private let pages: UnsafeMutableBufferPointer<Page>

    /// Bytes of the file that `count` bits take.
    static func length(of count: Int) -> Int { (count + bitsPerPage - 1) / bitsPerPage * 4096 }

    /// Bytes of the file that the marks of `count` bits take, in whole words.
    static func lengthOfMarks(of count: Int) -> Int { (length(of: count) / 4096 + 63) / 64 * 8 }

    /// The bits in `file` from `start` on, with `pages` for as many. `marksAt`: where the marks are, a multiple of 8 bytes; they have
    /// space.
    init(_ file: MappedFile, at start: Int, count: Int, _ pages: Pages, marksAt: Int? = nil) {
        precondition(
            start % 4096 == 0 && start + Self.length(of: count) <= file.length, "a section lies in its file")
        self.file = file
        self.start = start
        self.count = count
        guard let base = file.bytes.baseAddress else { preconditionFailure("a mapped file has an address") }
        words = (base + start).assumingMemoryBound(to: UInt64.self)
        marks = marksAt.map { (base + $0).assumingMemoryBound(to: UInt64.self) }
        self.pages = pages.pages
        precondition(self.pages.count == Self.length(of: count) / 4096, "a section has pages of its own")
        guard let marks else { return }
        for page in self.pages.indices where marks[page / 64] & (1 << UInt64(page % 64)) != 0 {
            self.pages[page] = .whole
        }
    }

    /// After a restart: these bytes of the file have space.
    func noteSpace(_ range: Range<Int>) {
        let first = max(0, range.lowerBound - start) / 4096
        let last = min(pages.count, (range.upperBound - start + 4095) / 4096)
        guard range.upperBound > start && first < last else { return }
        for page in first..<last where pages[page] == .clear { pages[page] = .stored }
    }

    func isSet(_ bit: Int) -> Bool {
        switch pages[bit / Self.bitsPerPage] {
        case .clear: false
        case .stored: words[bit / 64] & (1 << UInt64(bit % 64)) != 0
        case .whole: true
        }
    }

    func fetch(_ bit: Int) { prefetch(words + bit / 64) }

    /// Takes the space that setting `bits`, in one step, needs. Throws `.noSpace`; nothing is set then.
    func reserve(_ bits: Range<Int>) throws(BlockError) {
        guard let (first, last) = pagesAt(bits) else { return }
        let covered = pagesCovered(by: bits)
        guard !covered.isEmpty else { return try takeSpace(first..<last + 1) }
        try takeSpace(first..<covered.lowerBound)
        try takeSpace(covered.upperBound..<last + 1)
    }

    /// The first and the last page of bits.
    private func pagesAt(_ bits: Range<Int>) -> (first: Int, last: Int)? {
        bits.isEmpty ? nil : (bits.lowerBound / Self.bitsPerPage, (bits.upperBound - 1) / Self.bitsPerPage)
    }

    /// The pages that `bits` set as a whole; empty where there are no marks.
    private func pagesCovered(by bits: Range<Int>) -> Range<Int> {
        guard marks != nil else { return 0..<0 }
        let first = (bits.lowerBound + Self.bitsPerPage - 1) / Self.bitsPerPage
        let end = bits.upperBound == count ? pages.count : bits.upperBound / Self.bitsPerPage
        return first < end ? first..<end : 0..<0
    }

    private func takeSpace(_ wanted: Range<Int>) throws(BlockError) {
        var next = wanted.lowerBound
        while let first = pages[next..<wanted.upperBound].firstIndex(of: .clear) {
            let end = pages[first..<wanted.upperBound].firstIndex { $0 != .clear } ?? wanted.upperBound
            try file.allocate(start + first * 4096..<start + end * 4096)
            for page in first..<end { pages[page] = .stored }
            next = end
        }
    }

    /// Sets bits whose space `reserve` took for just these, or, without marks, for more.
    func set(_ bits: Range<Int>) {
        let covered = pagesCovered(by: bits)
        for page in covered where pages[page] == .clear {
            marks?[page / 64] |= 1 << UInt64(page % 64)
            pages[page] = .whole
        }
        if let (first, last) = pagesAt(bits) {
            precondition(
                pages[first] != .clear && pages[last] != .clear, "bits are set where they have space")
        }
        forEachWord(of: bits) { word, mask in words[word] |= mask }
    }

    /// Clears bits, wherever they have space.
    func clear(_ bits: Range<Int>) {
        if marks != nil, let (first, last) = pagesAt(bits) {
            precondition(!pages[first...last].contains(.whole), "what is marked as set stays set")
        }
        forEachWord(of: bits) { word, mask in words[word] &= ~mask }
    }

    /// The first bit of `bits` that is set (or clear), nil when there is none.
    func first(in bits: Range<Int>, where isSet: Bool = true) -> Int? {
        var next = bits.lowerBound
        // Of one cluster, which is asked for most, all are in one word, unless it is a large one.
        if next < bits.upperBound, next / 64 == (bits.upperBound - 1) / 64,
            pages[next / Self.bitsPerPage] == .stored
        {
            let word = (isSet ? words[next / 64] : ~words[next / 64]) >> UInt64(next % 64)
            let found = next + word.trailingZeroBitCount
            return found < bits.upperBound ? found : nil
        }
        while next < bits.upperBound {
            let page = next / Self.bitsPerPage
            guard pages[page] == .stored else {
                if (pages[page] == .whole) == isSet { return next }
                next = (page + 1) * Self.bitsPerPage
                continue
            }
            // Word by word, and nothing else: of a drive of many TiB these are millions.
            let end = min(bits.upperBound, (page + 1) * Self.bitsPerPage)
            let (last, flip): (Int, UInt64) = ((end - 1) / 64, isSet ? 0 : .max)
            var index = next / 64
            var word = (words[index] ^ flip) & (.max << UInt64(next % 64))
            while word == 0, index < last {
                index += 1
                word = words[index] ^ flip
            }
            if word != 0 {
                let found = index * 64 + word.trailingZeroBitCount
                return found < bits.upperBound ? found : nil
            }
            next = end
        }
        return nil
    }

    func isAnySet(in bits: Range<Int>) -> Bool { first(in: bits) != nil }

    /// The runs of set bits in `bits`, in order.
    func runs(in bits: Range<Int>) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        var next = bits.lowerBound
        while let start = first(in: next..<bits.upperBound) {
            let end = first(in: start..<bits.upperBound, where: false) ?? bits.upperBound
            runs.append(start..<end)
            next = end
        }
        return runs
    }

    /// Goes over the words of pages that have space.
    private func forEachWord(of bits: Range<Int>, _ body: (Int, UInt64) -> Void) {
        precondition(bits.lowerBound >= 0 && bits.upperBound <= count, "bits lie in their section")
        var next = bits.lowerBound
        while next < bits.upperBound {
            guard pages[next / Self.bitsPerPage] == .stored else {
                next = (next / Self.bitsPerPage + 1) * Self.bitsPerPage
                continue
            }
            let word = next / 64
            let end = min(bits.upperBound, word * 64 + 64)
            body(word, (UInt64.max >> UInt64(64 - (end - next))) << UInt64(next % 64))
            next = end
        }
    }
}
