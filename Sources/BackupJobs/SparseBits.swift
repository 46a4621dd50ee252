/// Bits of which few are set, in memory.
struct SparseBits {
    private static let wordsPerPage = 64
    private static let emptyPage = [UInt64](repeating: 0, count: wordsPerPage)
    private var pages: [Int: [UInt64]] = [:]

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
            guard let words = pages[page] else {
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
            guard isSet || pages[page] != nil else {
                next = pageEnd
                continue
            }
            // In place: the page is not copied.
            let part = next..<pageEnd
            changed += Self.change(part, to: isSet, in: &pages[page, default: Self.emptyPage])
            if !isSet, let words = pages[page], words.allSatisfy({ $0 == 0 }) { pages[page] = nil }
            next = pageEnd
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
