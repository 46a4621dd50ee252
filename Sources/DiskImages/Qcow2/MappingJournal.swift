internal import BlockIO

/// The changes of a qcow2 drive's mappings that its L2 tables on the disk do not have yet, in a file on tmpfs.
///
/// An image's L2 tables are written when its guest flushes, so that most of the time what the guest was told lives in
/// memory. The journal is memory that outlives a killed agent. It is a log: records have consecutive numbers, number *n*
/// stands in slot *n* modulo the capacity, and those from `tail` on are alive. A record is published by the store of
/// its number, the last of its four words; a kill before that store leaves a slot whose number is too low, where a reader
/// stops. `tail` moves when the L2 tables that hold what was logged before it are durable; a mapping that changed since
/// has a later record of its own. The last record of each cluster, played over whatever of these tables reached the disk,
/// gives the mappings that the guest was told.
///
/// It also knows the allocator's reserve (host clusters that are counted and not used), so that a kill leaks no more of
/// it than what was on its way to be used: two slots of runs, of which the current one and the number of clusters taken
/// from it are told by one word.
///
///     0 magic | 8 device | 16 inode | 24 disk size | 32 cluster bits | 40 L1 offset | 48 capacity | 56 file's birth time | 64 boot id (36)
///     120 ready | 128 tail | 136 reserve: generation (16 bits), clusters taken (48)
///     4096, 8192: number of runs, check, runs of (first cluster, count with bit 63: never used)
///     12288: records of (first guest cluster, L2 entry of the first, count and check, number)
///
/// Numbers are in the machine's order: a journal never leaves its host, nor outlives its boot.
struct MappingJournal {
    /// What a journal must say to belong to an image.
    struct Identity: Sendable, Hashable {
        var file: FileIdentity
        /// When the image's file was made: another one may have its inode's number now.
        var birthTime: UInt64
        var size: UInt64
        var clusterBits: UInt32
        var l1Offset: UInt64

        var fileName: String { "qcow2-\(file.device)-\(file.inode).journal" }
    }

    /// `count` guest clusters get `entry`; where it points to a host cluster, each next one to the next.
    struct Record: Hashable {
        var firstCluster: UInt64
        var count: UInt64
        var entry: UInt64
    }

    struct ReserveRun: Sendable, Hashable {
        var clusters: Range<UInt64>
        /// Nothing was ever written there: it reads as zeroes.
        var isUnused: Bool
    }

    static let maximumReserveRuns = 254

    private enum Place {
        static let magic = 0, device = 8, inode = 16, size = 24, clusterBits = 32, l1Offset = 40,
            capacity = 48, birthTime = 56
        static let bootID = 64, ready = 120, tail = 128, reserve = 136, reserveSlots = 4096, records = 12288
    }
    private static let magic: UInt64 = 0x314c_4e4a_5132_4244
    private static let recordSize = 32

    let file: MappedFile
    let capacity: UInt64
    /// The number of the next record.
    private(set) var next: UInt64
    /// The number of the first record that is alive.
    private(set) var tail: UInt64

    // MARK: Files

    /// Makes an empty journal. Blocks.
    static func create(
        in directory: String, for identity: Identity, bootID: String, records: Int
    ) throws(BlockError) -> MappedFile {
        let length = Place.records + max(records, 4) * recordSize
        let file = try MappedFile.create(
            "\(directory)/\(identity.fileName)", length: length, allocated: length)
        let bytes = file.bytes
        for (place, value) in identity.words {
            bytes.storeBytes(of: value, toByteOffset: place, as: UInt64.self)
        }
        bytes.storeBytes(of: UInt64(max(records, 4)), toByteOffset: Place.capacity, as: UInt64.self)
        for (index, byte) in bootID.utf8.prefix(Place.ready - Place.bootID).enumerated() {
            bytes[Place.bootID + index] = byte
        }
        bytes.storeBytes(of: 1, toByteOffset: Place.tail, as: UInt64.self)
        file.store(magic, at: Place.ready)
        return file
    }

    /// What a file that is named as this image's journal is worth.
    enum Found {
        case journal(MappingJournal)
        /// It says nothing about the image as it is now, and why.
        case worthless(String)
    }

    /// Looks at an existing journal; throws `.corrupt` for one that should count and cannot be used. `isMarked`: the image says, or may
    /// mean, that there is one.
    static func examine(
        _ file: MappedFile, for identity: Identity, bootID: String, isMarked: Bool
    ) throws(BlockError) -> Found {
        let bytes = file.bytes
        func word(_ place: Int) -> UInt64 { bytes.load(fromByteOffset: place, as: UInt64.self) }
        guard file.length >= Place.records, file.load(at: Place.ready) == magic else {
            return .worthless("it was never finished")
        }
        let recorded = String(
            decoding: bytes[Place.bootID..<Place.ready].prefix { $0 != 0 }, as: UTF8.self)
        guard recorded == bootID else {
            return .worthless("the host was started again since; what was not flushed then is lost")
        }
        let capacity = word(Place.capacity)
        guard word(Place.magic) == magic, capacity > 0,
            UInt64(file.length - Place.records) / UInt64(recordSize) >= capacity
        else { throw unusable(file, "is damaged") }
        // A copy of its image would have the mark in the header.
        guard isMarked || word(Place.birthTime) == identity.birthTime else {
            return .worthless("its image was removed, and this one, made later, has the same inode number")
        }
        for (place, value) in identity.words where word(place) != value {
            throw unusable(file, "was written for another image, or this one was changed since")
        }
        var journal = MappingJournal(file: file, capacity: capacity, next: 0, tail: word(Place.tail))
        journal.next = try journal.findEnd()
        return .journal(journal)
    }

    static func unusable(_ file: MappedFile, _ why: String) -> BlockError {
        BlockError(
            .corrupt,
            "The journal \(file.path), which holds what its guest wrote last, \(why); put the image back as it was, "
                + "or remove the journal to give up what is in it")
    }

    /// Throws when a record is published and does not fit its check.
    private func findEnd() throws(BlockError) -> UInt64 {
        var number = tail
        while number - tail < capacity, file.load(at: place(of: number) + 24) == number {
            guard isIntact(number) else { throw Self.unusable(file, "is damaged") }
            number += 1
        }
        return number
    }

    // MARK: The log

    /// How many more records fit.
    var room: Int { Int(capacity - (next - tail)) }
    var isEmpty: Bool { next == tail }
    var isMostlyFull: Bool { next - tail > capacity / 2 }

    mutating func append(_ record: Record) {
        precondition(room > 0, "a record finds its place in the journal")
        let place = place(of: next)
        let bytes = file.bytes
        bytes.storeBytes(of: record.firstCluster, toByteOffset: place, as: UInt64.self)
        bytes.storeBytes(of: record.entry, toByteOffset: place + 8, as: UInt64.self)
        bytes.storeBytes(
            of: record.count | Self.check(record, next) << 32, toByteOffset: place + 16, as: UInt64.self)
        file.store(next, at: place + 24)
        next += 1
    }

    /// Drops the records before `number`: what they say is durable.
    mutating func release(upTo number: UInt64) {
        precondition(number >= tail && number <= next, "records leave the journal from its start")
        guard number > tail else { return }
        tail = number
        file.store(tail, at: Place.tail)
    }

    /// The records that are alive, oldest first.
    var records: [Record] { (tail..<next).map(record) }

    private func record(_ number: UInt64) -> Record {
        let place = place(of: number)
        let bytes = file.bytes
        return Record(
            firstCluster: bytes.load(fromByteOffset: place, as: UInt64.self),
            count: bytes.load(fromByteOffset: place + 16, as: UInt64.self) & 0xffff_ffff,
            entry: bytes.load(fromByteOffset: place + 8, as: UInt64.self))
    }

    private func isIntact(_ number: UInt64) -> Bool {
        let stored = file.bytes.load(fromByteOffset: place(of: number) + 16, as: UInt64.self) >> 32
        return stored == Self.check(record(number), number)
    }

    private func place(of number: UInt64) -> Int {
        Place.records + Int(number % capacity) * Self.recordSize
    }

    private static func check(_ record: Record, _ number: UInt64) -> UInt64 {
        var sum = number
        for word in [record.firstCluster, record.count, record.entry] {
            sum = (sum ^ word) &* 0x9e37_79b9_7f4a_7c15
            sum ^= sum >> 29
        }
        return sum >> 32
    }

    // MARK: The reserve

    /// Says what is in reserve from now on, instead of all before.
    func setReserve(_ runs: [ReserveRun]) {
        precondition(runs.count <= Self.maximumReserveRuns, "a reserve fits its slot")
        let generation = (file.load(at: Place.reserve) >> 48 + 1) & 0xffff
        let slot = Place.reserveSlots + Int(generation & 1) * 4096
        let bytes = file.bytes
        bytes.storeBytes(of: UInt64(runs.count), toByteOffset: slot, as: UInt64.self)
        for (index, run) in runs.enumerated() {
            bytes.storeBytes(
                of: run.clusters.lowerBound, toByteOffset: slot + 16 + index * 16, as: UInt64.self)
            bytes.storeBytes(
                of: UInt64(run.clusters.count) | (run.isUnused ? 1 << 63 : 0),
                toByteOffset: slot + 24 + index * 16, as: UInt64.self)
        }
        file.store(generation << 48, at: Place.reserve)
    }

    /// Says that so many more clusters of the reserve are in use, before they are.
    func noteTaken(_ count: UInt64) {
        file.store(file.load(at: Place.reserve) + count, at: Place.reserve)
    }

    /// What is left of the reserve.
    var reserve: [ReserveRun] {
        let state = file.load(at: Place.reserve)
        let slot = Place.reserveSlots + Int(state >> 48 & 1) * 4096
        var taken = state & 0xffff_ffff_ffff
        let bytes = file.bytes
        let count = min(UInt64(Self.maximumReserveRuns), bytes.load(fromByteOffset: slot, as: UInt64.self))
        var runs: [ReserveRun] = []
        for index in 0..<Int(count) {
            let first = bytes.load(fromByteOffset: slot + 16 + index * 16, as: UInt64.self)
            let word = bytes.load(fromByteOffset: slot + 24 + index * 16, as: UInt64.self)
            let (length, overflows) = (word & ~(1 << 63), first > UInt64.max / 4)
            guard !overflows, length < 1 << 40 else { return [] }
            let skipped = min(taken, length)
            taken -= skipped
            if skipped < length {
                runs.append(
                    ReserveRun(clusters: first + skipped..<first + length, isUnused: word >> 63 != 0))
            }
        }
        return runs
    }
}

extension MappingJournal.Identity {
    fileprivate var words: [(place: Int, value: UInt64)] {
        [
            (0, 0x314c_4e4a_5132_4244), (8, file.device), (16, file.inode), (24, size),
            (32, UInt64(clusterBits)),
            (40, l1Offset), (56, birthTime),
        ]
    }
}
