internal import BlockIO

/// Where the log has a block: in which slot.
///
/// Each block that a guest overwrites beside a backup comes here, and with a dictionary it took a tenth of a save: two looks, each
/// at five places that no cache has. Here a look is at one word and at those behind it, in tables of which none takes long to grow.
struct SlotIndex: ~Copyable {
    static let tables = 1024

    /// A block's number in two halves, so that half a word is enough for the key: neighbours, and blocks at regular distances, are
    /// in different tables. No drive has more blocks than that names (`BackupJob.largestDrive`).
    struct Name {
        let table: Int
        let key: UInt32

        static let most = Int(BackupJob.largestDrive / JobRecord.blockSize)

        init(_ block: Int) {
            let high = block / SlotIndex.tables
            key = UInt32(high)
            table = (block ^ Self.mixed(high)) % SlotIndex.tables
        }

        init(table: Int, key: UInt32) {
            self.table = table
            self.key = key
        }

        var block: Int {
            Int(key) * SlotIndex.tables + (table ^ Self.mixed(Int(key)))
        }

        private static func mixed(_ high: Int) -> Int {
            Int(truncatingIfNeeded: (UInt64(high) &* 0x9E37_79B9_7F4A_7C15) >> 54)
        }
    }

    /// Words of a key, plus one, in the upper half and a slot in the lower; 0 for none. Each is at the place of its key, or behind it
    /// with no gap between.
    private struct Table {
        var words = UnsafeMutableBufferPointer<UInt64>(start: nil, count: 0)
        var count = 0
        /// What no guest knows: none can choose blocks that want the same place.
        let secret: UInt32

        /// So many bits of the key's hash as there are places, a power of two. (It mixes as MurmurHash3 does at its end, and so has
        /// nothing to do with which keys are in the same table.)
        private func place(of key: UInt32) -> Int {
            var hash = key ^ secret
            hash = (hash ^ hash >> 16) &* 0x85EB_CA6B
            hash = (hash ^ hash >> 13) &* 0xC2B2_AE35
            return Int(hash >> UInt32(32 - words.count.trailingZeroBitCount))
        }

        /// How far a word is behind its place.
        func distance(_ place: Int) -> Int {
            (place - self.place(of: Self.key(words[place]))) & (words.count - 1)
        }

        func fetch(_ key: UInt32) {
            if let first = words.baseAddress { prefetch(first + place(of: key)) }
        }

        /// Where the key is, or the gap where it would be; there is one.
        func find(_ key: UInt32) -> Int {
            var place = place(of: key)
            while words[place] != 0, Self.key(words[place]) != key { place = next(place) }
            return place
        }

        private func next(_ place: Int) -> Int { (place + 1) & (words.count - 1) }

        static func key(_ word: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: word >> 32) &- 1 }

        static func word(_ key: UInt32, _ slot: UInt32) -> UInt64 { (UInt64(key) + 1) << 32 | UInt64(slot) }

        /// Makes room for one more: a quarter of the words are gaps.
        mutating func grow() {
            guard (count + 1) * 4 > words.count * 3 else { return }
            let old = words
            words = .allocate(capacity: max(8, old.count * 2))
            words.initialize(repeating: 0)
            for word in old where word != 0 { words[find(Self.key(word))] = word }
            old.deallocate()
        }

        /// Makes a gap, and moves what it would cut off from its place.
        mutating func clear(_ gap: Int) {
            var (gap, place) = (gap, next(gap))
            while words[place] != 0 {
                // A search for it comes by the gap.
                if distance(place) >= (place - gap) & (words.count - 1) {
                    words[gap] = words[place]
                    gap = place
                }
                place = next(place)
            }
            words[gap] = 0
            count -= 1
        }
    }

    private let tables: UnsafeMutableBufferPointer<Table>

    init() {
        tables = .allocate(capacity: Self.tables)
        tables.initialize(repeating: Table(secret: .random(in: .min ... .max)))
    }

    deinit {
        for table in tables { table.words.deallocate() }
        tables.deallocate()
    }

    /// How many blocks there are.
    private(set) var count = 0

    subscript(block: Int) -> Int? {
        let name = Name(block)
        let table = tables[name.table]
        guard table.count > 0 else { return nil }
        let word = table.words[table.find(name.key)]
        return word == 0 ? nil : Int(truncatingIfNeeded: word & 0xFFFF_FFFF)
    }

    /// The next `add` of the block need not wait for its place to come to the processor's cache.
    func fetch(_ block: Int) {
        let name = Name(block)
        tables[name.table].fetch(name.key)
    }

    /// False, and nothing is changed, when the block is there already. `slot` is less than 2³².
    mutating func add(_ block: Int, in slot: Int) -> Bool {
        let name = Name(block)
        tables[name.table].grow()
        let place = tables[name.table].find(name.key)
        guard tables[name.table].words[place] == 0 else { return false }
        tables[name.table].words[place] = Table.word(name.key, UInt32(slot))
        tables[name.table].count += 1
        count += 1
        return true
    }

    /// Returns where the block was; nil when it is not there.
    mutating func remove(_ block: Int) -> Int? {
        guard let slot = self[block] else { return nil }
        let name = Name(block)
        tables[name.table].clear(tables[name.table].find(name.key))
        count -= 1
        return slot
    }

    /// How many words are looked at in vain before a block is found, on average.
    var meanDistance: Double {
        var sum = 0
        for table in tables {
            for place in table.words.indices where table.words[place] != 0 { sum += table.distance(place) }
        }
        return Double(sum) / Double(max(1, count))
    }

    /// All of them, in no order.
    var blocks: [Int] {
        var blocks: [Int] = []
        blocks.reserveCapacity(count)
        for (index, table) in tables.enumerated() {
            for word in table.words where word != 0 {
                blocks.append(Name(table: index, key: Table.key(word)).block)
            }
        }
        return blocks
    }
}
