package import BlockIO

/// What is known of a job's clusters and blocks, in memory that outlives a killed agent: a mapped file on tmpfs, which
/// dies with the host's reboot, as the point in time does.
///
/// A store here is a store to memory: it cannot fail (its space was taken before) and is never torn. What comes before
/// what, and why, is told where it is done (`PointInTime`). Layout, in 64-bit words of the machine's order:
///
///     page 0   magic | version | drive size | cluster size | flags | boot id (2 words) | change times of the drive (2 words) |
///              the shape of the log of staging (3 words)
///              from byte 512 on, and in as many pages as that takes: which pages of done, need known and not needed are
///              all set, a bit a page (`BitSection`)
///     then     sections of bits, each from a page of its own: done, need known, not needed, frozen (a bit a cluster),
///              saved, missing (a bit a block of 4 KiB)
///     then     the log of staging (`StagingLog`)
///
/// After `bind` it is used on the engine of its drive only.
package final class JobRecord: Sendable {
    /// The unit in which old content is saved, in bytes.
    package static let blockSize: UInt64 = 4096

    private enum Word: Int {
        case magic, version, driveSize, clusterSize, flags, boot0, boot1, changeTimes, changeTimes1
        case blocksPerSegment, buffers, segments
    }
    private enum Flag: UInt64 { case broken = 1, flushing = 2, cancelled = 4, cloning = 8, cloned = 16 }
    /// "dbrecord".
    private static let magic: UInt64 = 0x6472_6f63_6572_6264
    private static let version: UInt64 = 4
    /// Where the marks of whole pages begin.
    private static let marksStart = 512

    /// All that is known, section by section.
    struct Sections {
        /// The target holds the cluster.
        var done: BitSection
        /// It was looked up whether the cluster is needed (`top`).
        var needKnown: BitSection
        /// The cluster is not needed.
        var notNeeded: BitSection
        /// After the good end of a job of sync `none`: the clusters that are still to be copied.
        var frozen: BitSection
        /// Staging holds the block's old content, or it is zero.
        var saved: BitSection
        /// The block's old content could not be read.
        var missing: BitSection

        func noteSpace(_ range: Range<Int>) {
            done.noteSpace(range)
            needKnown.noteSpace(range)
            notNeeded.noteSpace(range)
            frozen.noteSpace(range)
            saved.noteSpace(range)
            missing.noteSpace(range)
        }
    }

    package let driveSize: UInt64
    /// The job's, in bytes.
    package let clusterSize: UInt64
    /// When the drive's file was last changed, to be kept from before the point in time on.
    package let changeTimes: ChangeTimes
    /// Where short pieces are on their way to staging, and which are there.
    let log: StagingLog
    // These outlive the sections, which do not count references to them and are used through this object alone.
    private let file: MappedFile
    private let pages: [BitSection.Pages]
    private let sections: EngineIsolated<Sections>

    /// Makes the record of a job: a new file at `path`. Blocks; call it inside `IOEngine.blocking`. `clusterSize` is
    /// the job's, `engine` the drive's. Throws `.alreadyExists`, `.noSpace` and what else making a file throws.
    package static func create(
        at path: String, driveSize: UInt64, clusterSize: UInt64, engine: any IOEngine
    ) throws(BlockError) -> JobRecord {
        try create(at: path, driveSize: driveSize, clusterSize: clusterSize, log: .init(), engine: engine)
    }

    static func create(
        at path: String, driveSize: UInt64, clusterSize: UInt64, log: StagingLog.Shape, engine: any IOEngine
    ) throws(BlockError) -> JobRecord {
        guard driveSize <= BackupJob.largestDrive else {
            throw BlockError(
                .unsupported,
                "Couldn't back up a drive of \(driveSize) bytes: a job can keep track of \(BackupJob.largestDrive) bytes at "
                    + "most")
        }
        let clusters = counts(driveSize: driveSize, clusterSize: clusterSize).clusters
        let file = try MappedFile.create(
            path, length: length(driveSize: driveSize, clusterSize: clusterSize) + log.recordLength,
            allocated: headerLength(clusters: clusters))
        let record = JobRecord(
            file, driveSize: driveSize, clusterSize: clusterSize, log: log, engine: engine, space: [])
        record[.blocksPerSegment] = UInt64(log.blocksPerSegment)
        record[.buffers] = UInt64(log.buffers)
        record[.segments] = UInt64(log.segments)
        record[.driveSize] = driveSize
        record[.clusterSize] = clusterSize
        record[.version] = version
        let boot = try bootWords()
        record[.boot0] = boot.0
        record[.boot1] = boot.1
        record[.magic] = magic
        return record
    }

    /// Opens the record that a killed agent has left. Blocks. Throws `.corrupt` for what is none, `.invalid` for one of
    /// before the host's last start.
    package static func open(_ path: String, engine: any IOEngine) throws(BlockError) -> JobRecord {
        let file = try MappedFile.open(path)
        func word(_ word: Word) -> UInt64 { file.load(at: word.rawValue * 8) }
        let (driveSize, clusterSize) = (
            file.length >= 4096 ? word(.driveSize) : 0, file.length >= 4096 ? word(.clusterSize) : 0
        )
        guard file.length >= 4096, word(.magic) == magic, word(.version) == version,
            driveSize <= BackupJob.largestDrive, clusterSize.nonzeroBitCount == 1, clusterSize >= blockSize,
            clusterSize <= 1 << 30,
            let log = StagingLog.Shape(word(.blocksPerSegment), word(.buffers), word(.segments)),
            file.length == length(driveSize: driveSize, clusterSize: clusterSize) + log.recordLength
        else { throw BlockError(.corrupt, "Couldn't use \(path): it is not the record of a job") }
        let boot = try bootWords()
        guard word(.boot0) == boot.0, word(.boot1) == boot.1 else {
            throw BlockError(.invalid, "Couldn't use \(path): the host was restarted since it was written")
        }
        return JobRecord(
            file, driveSize: driveSize, clusterSize: clusterSize, log: log, engine: engine,
            space: try file.dataRanges())
    }

    private init(
        _ file: MappedFile, driveSize: UInt64, clusterSize: UInt64, log shape: StagingLog.Shape,
        engine: any IOEngine, space: [Range<Int>]
    ) {
        self.file = file
        self.driveSize = driveSize
        self.clusterSize = clusterSize
        changeTimes = ChangeTimes(in: file, at: Word.changeTimes.rawValue * 8)
        let (clusters, blocks) = Self.counts(driveSize: driveSize, clusterSize: clusterSize)
        var next = Self.headerLength(clusters: clusters)
        var nextMarks = Self.marksStart
        var allPages: [BitSection.Pages] = []
        func section(_ count: Int, isMarked: Bool = false) -> BitSection {
            defer {
                next += BitSection.length(of: count)
                if isMarked { nextMarks += BitSection.lengthOfMarks(of: count) }
            }
            let pages = BitSection.Pages(ofBits: count)
            allPages.append(pages)
            return BitSection(file, at: next, count: count, pages, marksAt: isMarked ? nextMarks : nil)
        }
        // What is never cleared, and set for holes of any size.
        let all = Sections(
            done: section(clusters, isMarked: true), needKnown: section(clusters, isMarked: true),
            notNeeded: section(clusters, isMarked: true), frozen: section(clusters), saved: section(blocks),
            missing: section(blocks))
        for range in space { all.noteSpace(range) }
        log = StagingLog(file, at: next, shape: shape, space: space, engine: engine)
        pages = allPages
        sections = EngineIsolated(all, engine: engine)
    }

    private static func counts(driveSize: UInt64, clusterSize: UInt64) -> (clusters: Int, blocks: Int) {
        (Int(driveSize.dividedRoundingUp(by: clusterSize)), Int(driveSize.dividedRoundingUp(by: blockSize)))
    }

    private static func length(driveSize: UInt64, clusterSize: UInt64) -> Int {
        let (clusters, blocks) = counts(driveSize: driveSize, clusterSize: clusterSize)
        return headerLength(clusters: clusters) + 4 * BitSection.length(of: clusters)
            + 2 * BitSection.length(of: blocks)
    }

    /// Bytes before the sections, in whole pages.
    private static func headerLength(clusters: Int) -> Int {
        (marksStart + 3 * BitSection.lengthOfMarks(of: clusters) + 4095) / 4096 * 4096
    }

    /// The kernel's identifier of this boot, 32 hexadecimal digits, as two words.
    private static func bootWords() throws(BlockError) -> (UInt64, UInt64) {
        let digits = try HostBoot.identifier().compactMap(\.hexDigitValue)
        guard digits.count == 32 else {
            throw BlockError(
                .unsupported, "Couldn't tell this boot of the host from others: its identifier is no UUID")
        }
        func word(_ digits: ArraySlice<Int>) -> UInt64 { digits.reduce(0) { $0 << 4 | UInt64($1) } }
        return (word(digits[..<16]), word(digits[16...]))
    }

    /// Removes the file; the memory stays until the last reference goes. Blocks. Throws why it is still there.
    package func remove() throws(BlockError) { try file.remove() }

    // MARK: For the job

    /// The sections, to be read or changed in place; on the drive's engine.
    var bits: Sections {
        _read { yield sections.value }
        _modify { yield &sections.value }
    }

    /// The point in time is lost: something changed that was not saved.
    var isBroken: Bool { has(.broken) }
    package func setBroken() { set(.broken, true) }

    /// A flush of the target has begun and has not returned without error: what it would have told may be lost.
    package var isFlushing: Bool {
        get { has(.flushing) }
        set { set(.flushing, newValue) }
    }

    /// A job of sync `none` was told to end well; `frozen` is what is still to be copied.
    package var isCancelled: Bool { has(.cancelled) }
    func setCancelled() { set(.cancelled, true) }

    /// A clone was begun: what the target does not hold yet may be anything there, and no zeroes.
    var isCloning: Bool {
        get { has(.cloning) }
        set { set(.cloning, newValue) }
    }

    /// Clusters are done that were cloned: nobody has read them.
    package var isCloned: Bool { has(.cloned) }
    func setCloned() { set(.cloned, true) }

    private subscript(word: Word) -> UInt64 {
        get { file.load(at: word.rawValue * 8) }
        set { file.store(newValue, at: word.rawValue * 8) }
    }

    private func has(_ flag: Flag) -> Bool { file.load(at: Word.flags.rawValue * 8) & flag.rawValue != 0 }

    private func set(_ flag: Flag, _ isSet: Bool) {
        let old = file.load(at: Word.flags.rawValue * 8)
        file.store(isSet ? old | flag.rawValue : old & ~flag.rawValue, at: Word.flags.rawValue * 8)
    }
}
