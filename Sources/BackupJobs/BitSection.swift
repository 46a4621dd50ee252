internal import BlockIO

/// A row of bits in a mapped file, one for each cluster or block of a drive, all clear at first.
///
/// Its space is taken a page (32,768 bits) at a time, when the first bit of that page is set: a store cannot fail then,
/// and a page without space is all clear and is never touched. Used on one engine's thread.
struct BitSection {
    /// Bits in a page of the file.
    static let bitsPerPage = 4096 * 8

    /// How many bits there are.
    let count: Int
    private let file: MappedFile
    /// Where in the file the bits begin, a multiple of a page.
    private let start: Int
    private let words: UnsafeMutablePointer<UInt64>
    /// Which pages have space.
    private var pages: [Bool]

    /// Bytes of the file that `count` bits take.
    static func length(of count: Int) -> Int { (count + bitsPerPage - 1) / bitsPerPage * 4096 }

    init(_ file: MappedFile, at start: Int, count: Int) {
        precondition(
            start % 4096 == 0 && start + Self.length(of: count) <= file.length, "a section lies in its file")
        self.file = file
        self.start = start
        self.count = count
        guard let base = file.bytes.baseAddress else { preconditionFailure("a mapped file has an address") }
        words = (base + start).assumingMemoryBound(to: UInt64.self)
        pages = Array(repeating: false, count: Self.length(of: count) / 4096)
    }

    /// After a restart: these bytes of the file have space.
    mutating func noteSpace(_ range: Range<Int>) {
        let first = max(0, range.lowerBound - start) / 4096
        let last = min(pages.count, (range.upperBound - start + 4095) / 4096)
        if range.upperBound > start && first < last { for page in first..<last { pages[page] = true } }
    }

    func isSet(_ bit: Int) -> Bool {
        pages[bit / Self.bitsPerPage] && words[bit / 64] & (1 << UInt64(bit % 64)) != 0
    }

    /// Takes the space that setting `bits` needs. Throws `.noSpace`; nothing is set then.
    mutating func reserve(_ bits: Range<Int>) throws(BlockError) {
        guard !bits.isEmpty else { return }
        let wanted = bits.lowerBound / Self.bitsPerPage..<(bits.upperBound - 1) / Self.bitsPerPage + 1
        var next = wanted.lowerBound
        while let first = pages[next..<wanted.upperBound].firstIndex(of: false) {
            let end = pages[first..<wanted.upperBound].firstIndex(of: true) ?? wanted.upperBound
            try file.allocate(start + first * 4096..<start + end * 4096)
            for page in first..<end { pages[page] = true }
            next = end
        }
    }

    /// Sets bits whose space was taken.
    func set(_ bits: Range<Int>) {
        let whole = (bits.lowerBound + 63) / 64..<max((bits.lowerBound + 63) / 64, bits.upperBound / 64)
        guard !whole.isEmpty else { return setByWord(bits) }
        setByWord(bits.lowerBound..<whole.lowerBound * 64)
        precondition(bits.upperBound <= count, "bits lie in their section")
        (words + whole.lowerBound).update(repeating: .max, count: whole.count)
        setByWord(whole.upperBound * 64..<bits.upperBound)
    }

    private func setByWord(_ bits: Range<Int>) {
        forEachWord(of: bits) { word, mask in words[word] |= mask }
    }

    /// Clears bits, wherever they have space.
    func clear(_ bits: Range<Int>) {
        forEachWord(of: bits) { word, mask in
            if pages[word / 512] { words[word] &= ~mask }
        }
    }

    /// The first bit of `bits` that is set (or clear), nil when there is none.
    func first(in bits: Range<Int>, where isSet: Bool = true) -> Int? {
        var next = bits.lowerBound
        while next < bits.upperBound {
            let page = next / Self.bitsPerPage
            if !pages[page] {
                if !isSet { return next }
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

    /// How many of `bits` are set.
    func countSet(in bits: Range<Int>) -> Int {
        var count = 0
        forEachWord(of: bits) { word, mask in
            if pages[word / 512] { count += (words[word] & mask).nonzeroBitCount }
        }
        return count
    }

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

    private func forEachWord(of bits: Range<Int>, _ body: (Int, UInt64) -> Void) {
        precondition(bits.lowerBound >= 0 && bits.upperBound <= count, "bits lie in their section")
        var next = bits.lowerBound
        while next < bits.upperBound {
            let word = next / 64
            let end = min(bits.upperBound, word * 64 + 64)
            body(word, (UInt64.max >> UInt64(64 - (end - next))) << UInt64(next % 64))
            next = end
        }
    }
}
