/// Bits of which few are set, in memory.
///
/// By page and group of pages, with empty arrays for those that have none: to look a page up in a dictionary takes several times
/// as long as to change a bit. Pages without bits are given back, groups (a KiB for each 2 GiB of a drive where there were some) not.
struct SparseBits {
    private static let wordsPerPage = 64
    private static let pagesPerGroup = 128
    private static let emptyPage = [UInt64](repeating: 0, count: wordsPerPage)
    private static let emptyGroup = [[UInt64]](repeating: [], count: pagesPerGroup)
    private var groups: [[[UInt64]]] = []

    /// Sets bits; returns how many were clear.
    mutating func set(_ bits: Range<Int>) -> Int { change(bits, to: true) }

    /// Clears bits; returns how many were set.
    mutating func clear(_ bits: Range<Int>) -> Int { change(bits, to: false) }

    func count(in bits: Range<Int>) -> Int {
        var count = 0
        _ = end(ofWords: bits) { _, word in
            count += word.nonzeroBitCount
            return nil
        }
        return count
    }

    /// Goes over the bits that are set.
    func forEach(in bits: Range<Int>, _ body: (Int) -> Void) {
        _ = end(of: bits) { bit in
            body(bit)
            return true
        }
    }

    /// The first of `bits`, of which at most `limit`, at least 1, are set.
    func prefix(of bits: Range<Int>, holding limit: Int) -> Range<Int> {
        var found = 0
        let end = end(of: bits) { _ in
            found += 1
            return found <= limit
        }
        return bits.lowerBound..<end
    }

    /// Goes over the bits that are set, until `body` says false of one: returns that, or the end of `bits`.
    private func end(of bits: Range<Int>, _ body: (Int) -> Bool) -> Int {
        end(ofWords: bits) { first, word in
            var rest = word
            while rest != 0 {
                let bit = first + rest.trailingZeroBitCount
                guard body(bit) else { return bit }
                rest &= rest - 1
            }
            return nil
        }
    }

    /// Goes over the words of pages that there are, with the number of the first bit of each and those of `bits` in it that are
    /// set, until `body` names a bit: returns that, or the end of `bits`.
    private func end(ofWords bits: Range<Int>, _ body: (Int, UInt64) -> Int?) -> Int {
        var next = bits.lowerBound
        while next < bits.upperBound {
            let page = next / (64 * Self.wordsPerPage)
            let pageEnd = min(bits.upperBound, (page + 1) * 64 * Self.wordsPerPage)
            let words = words(of: page)
            guard !words.isEmpty else {
                next = pageEnd
                continue
            }
            while next < pageEnd {
                let (word, end) = Self.word(of: next, in: pageEnd)
                if let bit = body(next / 64 * 64, words[word] & Self.mask(next..<end)) { return bit }
                next = end
            }
        }
        return bits.upperBound
    }

    /// Empty where there are none.
    private func words(of page: Int) -> [UInt64] {
        let (group, index) = page.quotientAndRemainder(dividingBy: Self.pagesPerGroup)
        return group < groups.count && !groups[group].isEmpty ? groups[group][index] : []
    }

    private mutating func add(_ page: Int) {
        let (group, index) = page.quotientAndRemainder(dividingBy: Self.pagesPerGroup)
        while groups.count <= group { groups.append([]) }
        if groups[group].isEmpty { groups[group] = Self.emptyGroup }
        if groups[group][index].isEmpty { groups[group][index] = Self.emptyPage }
    }

    private static func word(of bit: Int, in end: Int) -> (index: Int, end: Int) {
        (bit / 64 % wordsPerPage, min(end, bit / 64 * 64 + 64))
    }

    /// Bits of one word.
    private static func mask(_ bits: Range<Int>) -> UInt64 {
        (UInt64.max >> UInt64(64 - bits.count)) << UInt64(bits.lowerBound % 64)
    }

    private mutating func change(_ bits: Range<Int>, to isSet: Bool) -> Int {
        var (next, changed) = (bits.lowerBound, 0)
        while next < bits.upperBound {
            let page = next / (64 * Self.wordsPerPage)
            let pageEnd = min(bits.upperBound, (page + 1) * 64 * Self.wordsPerPage)
            let part = next..<pageEnd
            next = pageEnd
            if isSet { add(page) } else if words(of: page).isEmpty { continue }
            let (group, index) = page.quotientAndRemainder(dividingBy: Self.pagesPerGroup)
            // In place: the page is not copied.
            changed += Self.change(part, to: isSet, in: &groups[group][index])
            if !isSet, groups[group][index].allSatisfy({ $0 == 0 }) { groups[group][index] = [] }
        }
        return changed
    }

    /// The same within a page.
    private static func change(_ bits: Range<Int>, to isSet: Bool, in words: inout [UInt64]) -> Int {
        var (next, changed) = (bits.lowerBound, 0)
        while next < bits.upperBound {
            let (index, end) = word(of: next, in: bits.upperBound)
            let mask = mask(next..<end)
            changed += ((isSet ? ~words[index] : words[index]) & mask).nonzeroBitCount
            words[index] = isSet ? words[index] | mask : words[index] & ~mask
            next = end
        }
        return changed
    }
}
