package import BlockIO
internal import Glibc
internal import Synchronization

/// Local space for the old content of blocks that the guest overwrites, on its way to the target: a sparse file as large
/// as the drive, the old content of a block at the block's own offset, and behind that a log (`StagingLog`) for short pieces.
///
/// The part as large as the drive has no index and no order: which blocks it holds, the job's record says. A late or a repeated
/// write to it is harmless, it is the same content at the same place. Blocks of zeroes are not written: their holes read as
/// zeroes. The log takes at most a quarter of the space; what it has no room for goes to the other part. Except for `usage`,
/// all of it is used on the drive's engine.
package final class Staging: Sendable {
    private struct State {
        /// Blocks that it holds, by page of 64 words.
        var staged = SparseBits()
        /// How many of them are not in the log.
        var outside = 0
        /// Blocks of the log may be in the other part, too: their save had begun there.
        var isDoubled = false
        var log: StagingLog?
        /// Where in the file the log is.
        var logStart: UInt64?
        /// Space that is promised to saves on their way, in bytes.
        var promised: UInt64 = 0
        var lost: BlockError?
        /// The file system had no more to give when it was looked at last.
        var isFull = false

        mutating func noteInLog(_ block: Int) {
            guard staged.set(block..<block + 1) == 0 else { return }
            outside -= 1
            isDoubled = true
        }
    }

    private let file: any BlockDevice
    private let path: String?
    private let requestedLimit: UInt64
    private let state: EngineIsolated<State>
    private let used = Atomic<UInt64>(0)
    private let limit: Atomic<UInt64>

    /// As long as anything of a process is on its way to the file it has the lock, killed or not.
    private static let lock: HostFile.Lock = (holding: .all, unsharing: .all)

    /// Makes an empty file `path`, which must not exist. `limit` in bytes bounds it; in any case it never takes the
    /// last tenth, nor the last GiB, of its file system. `engine` is the drive's.
    package static func create(
        at path: String, driveSize: UInt64, limit: UInt64?, on engine: any IOEngine
    ) async throws(BlockError) -> Staging {
        try await engine.run { () async throws(BlockError) -> Staging in
            let file = try await HostFile.create(path, on: engine)
            do throws(BlockError) {
                try await file.changeLock(holding: lock.holding, unsharing: lock.unsharing)
                try await setSize(of: file, driveSize)
                await file.bypassCache(always: false)
                guard await file.givesBackSpace() else {
                    throw BlockError(
                        .unsupported,
                        "Couldn't use \(path) as staging: its file system cannot give back parts of a file (use --staging "
                            + "with a directory of ext4, xfs, btrfs or tmpfs)")
                }
            } catch {
                // The error that led here is the one to tell.
                try? await file.close()
                _ = await engine.blocking { HostFile.unlink(path) }
                throw error
            }
            let staging = Staging(on: file, path: path, limit: limit)
            await staging.lookForSpace()
            return staging
        }
    }

    /// Opens the file `path` of a job that goes on; `recount` counts what it holds. Throws `.notFound`, `.locked` while
    /// something of the process before may still land there, and `.corrupt` when it is not as large as the drive.
    package static func open(
        at path: String, driveSize: UInt64, limit: UInt64?, on engine: any IOEngine
    ) async throws(BlockError) -> Staging {
        try await engine.run { () async throws(BlockError) -> Staging in
            let file = try await HostFile.open(path, readOnly: false, lock: lock, on: engine)
            guard file.size >= driveSize.roundedUp(toMultipleOf: JobRecord.blockSize) else {
                // What it is not is the error to tell.
                try? await file.close()
                throw BlockError(
                    .corrupt,
                    "Couldn't use \(path) as staging: it has \(file.size) bytes, the drive has \(driveSize)")
            }
            await file.bypassCache(always: false)
            return Staging(on: file, path: path, limit: limit)
        }
    }

    private static func setSize(of file: HostFile, _ driveSize: UInt64) async throws(BlockError) {
        let size = driveSize.roundedUp(toMultipleOf: JobRecord.blockSize)
        do throws(BlockError) { try await file.setSize(size + StagingLog.Shape().fileLength) } catch {
            // A drive that is just as long as a file can be has no log.
            guard error.errno == EFBIG else { throw error }
            try await file.setSize(size)
        }
    }

    /// Staging on any device of zeroes at least as large as the drive, rounded up to a block, and its log behind that.
    package init(on file: any BlockDevice, path: String? = nil, limit: UInt64? = nil) {
        self.file = file
        self.path = path
        requestedLimit = limit ?? .max
        self.limit = Atomic(limit ?? .max)
        state = EngineIsolated(State(), engine: file.engine)
        Self.count.add(1, ordering: .relaxed)
    }

    deinit { Self.count.subtract(1, ordering: .relaxed) }

    /// How many there are.
    private static let count = Atomic(0)

    /// Short pieces go to `log`, and what it holds counts; before anything else is done. The file has its part behind that of the
    /// drive of this size; where it has none nothing goes there, and false is returned if it holds something.
    @discardableResult
    func use(_ log: StagingLog, driveSize: UInt64) -> Bool {
        let start = driveSize.roundedUp(toMultipleOf: JobRecord.blockSize)
        guard start + log.shape.fileLength <= file.size else { return log.held == 0 }
        state.withState { state in
            state.log = log
            state.logStart = start
        }
        return true
    }

    /// Where the log begins.
    private var logStart: UInt64 { state.value.logStart ?? file.size }

    /// Callable from anywhere.
    package var usage: Usage {
        Usage(used: used.load(ordering: .relaxed), limit: limit.load(ordering: .relaxed))
    }

    /// Closes and removes the file; nothing uses it any more. An error leaves a file that the next start of the agent
    /// removes.
    package func remove() async throws(BlockError) {
        let engine = file.engine
        try await engine.run { () async throws(BlockError) in
            try await file.close()
            guard let path else { return }
            let result = await engine.blocking { HostFile.unlink(path) }
            guard result == 0 else { throw BlockError("Couldn't remove \(path)", errno: -result) }
        }
    }

    /// Closes the file, for the next process to open; nothing uses it any more.
    package func close() async throws(BlockError) {
        try await file.engine.run { () async throws(BlockError) in try await file.close() }
    }

    // MARK: Space

    /// Bytes that may still be taken.
    var room: UInt64 {
        let (used, promised) = (used.load(ordering: .relaxed), state.value.promised)
        let limit = limit.load(ordering: .relaxed)
        return used + promised < limit ? limit - used - promised : 0
    }

    var isEmpty: Bool { used.load(ordering: .relaxed) == 0 && state.value.promised == 0 }

    /// Promises space; `keep` it with what is written, or `giveBack`.
    func promise(_ bytes: UInt64) { state.value.promised += bytes }
    func giveBack(_ bytes: UInt64) { state.value.promised -= bytes }

    /// The file system has no more to give, whatever it said.
    func noteFull() {
        state.value.isFull = true
        limit.store(used.load(ordering: .relaxed), ordering: .relaxed)
    }

    /// The file system had no more to give, and has not been looked at since.
    var isFull: Bool { state.value.isFull }

    /// Looks what the file system has to give now.
    func lookForSpace() async {
        guard let path, let space = await file.engine.blocking({ HostFile.space(at: path) }) else { return }
        state.value.isFull = false
        let spare = Space(total: space.total, available: space.available)
        // What is free is for all jobs of this agent.
        let sharers = UInt64(max(1, Self.count.load(ordering: .relaxed)))
        let free = (spare.available > spare.spared ? spare.available - spare.spared : 0) / sharers
        limit.store(min(requestedLimit, used.load(ordering: .relaxed) + free), ordering: .relaxed)
    }

    // MARK: Content

    /// Longer pieces do not go to the log.
    private static let longestInLog: UInt64 = 16 << 10

    /// Writes the old content of whole blocks (the drive's end excepted), for which space was promised; zeroes are left
    /// out. When it returns the content outlives this process.
    func save(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        let inLog = saveInLog(range) { memory in
            memory.bytes.copyMemory(from: UnsafeRawBufferPointer(buffer.bytes))
            return true
        }
        if inLog != nil { return }
        for (part, bytes) in dataParts(of: range, buffer) {
            try await file.write(part, from: bytes)
            // Not before: what is given back meanwhile must not be thought to hold what lands later.
            count(part)
        }
    }

    /// Saves short pieces to memory, which `fill` fills with their content, or returns false. Returns that, or nil where there is
    /// no room for them; then nothing was called.
    func saveInLog(_ range: ByteRange, fill: (IOSlice) -> Bool) -> Bool? {
        guard range.length <= Self.longestInLog, let log = state.value.log else { return nil }
        let blocks = blocks(of: range)
        guard let memory = log.room(for: blocks.count, upTo: { most(log) }) else { return nil }
        let content = memory[0..<Int(range.length)]
        guard fill(content) else { return false }
        if !ZeroDetection.isZero(content.bytes) {
            log.take(blocks)
            if log.shouldSettle { settle() }
        }
        noteUsed()
        return true
    }

    /// What the log may take, in bytes.
    private func most(_ log: StagingLog) -> UInt64 {
        min(limit.load(ordering: .relaxed) / 4, log.length + min(room, .max / 2))
    }

    /// Saves blocks, each by itself; `read` fills memory with one, or returns false, and then that is left out. Returns those that are
    /// saved: no more when the log has no room.
    func saveSingly(_ blocks: [Int], read: (Int, IOSlice) -> Bool) -> [Int] {
        guard let log = state.value.log else { return [] }
        let unit = Int(JobRecord.blockSize)
        var (next, saved): (Int, [Int]) = (0, [])
        saved.reserveCapacity(blocks.count)
        while next < blocks.count,
            let memory = log.room(forSome: blocks.count - next, upTo: { most(log) })
        {
            var taken: [Int] = []
            taken.reserveCapacity(blocks.count)
            let end = next + memory.count / unit
            for block in blocks[next..<end] {
                let content = memory[taken.count * unit..<(taken.count + 1) * unit]
                // The second of two would be what the log does not need.
                guard !saved.contains(block), read(block, content) else { continue }
                saved.append(block)
                if !ZeroDetection.isZero(content.bytes) { taken.append(block) }
            }
            next = end
            log.take(taken)
            if log.shouldSettle { settle() }
            noteUsed()
        }
        return saved
    }

    /// What the log has taken is found from now on: before anything is looked for.
    private func settle() {
        guard let log = state.value.log else { return }
        if state.withState({ state in log.settle { state.noteInLog($0) } }) { noteUsed() }
    }

    /// The same in this step; false when that cannot be, and then any part of it may have been written.
    func saveAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        for (part, bytes) in dataParts(of: range, buffer) {
            let isWritten = file.writeAtOnce(part, from: bytes)
            // Also what may be there in part: before somebody saves it the cluster can be done, and is given back then.
            count(part)
            guard isWritten else { return false }
        }
        return true
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        settle()
        guard let log = state.value.log, log.held > 0 else {
            return try await file.read(range, into: buffer)
        }
        // All of what is in memory before the first wait: it may be in the file afterwards.
        var (others, start): ([(part: ByteRange, from: UInt64)], UInt64) = ([], logStart)
        for block in blocks(of: range) {
            let whole = ByteRange(
                offset: UInt64(block) * JobRecord.blockSize, length: JobRecord.blockSize)
            let part = whole.clamped(to: range)
            let position = part.offset - whole.offset
            let from: UInt64
            switch log.place(of: block) {
            case .memory(let content):
                let slice = Self.slice(of: buffer, part, in: range).bytes
                let known = content.bytes[Int(position)..<Int(position) + slice.count]
                slice.copyMemory(from: UnsafeRawBufferPointer(rebasing: known))
                continue
            case .file(let slot): from = start + slot + position
            case nil: from = part.offset
            }
            if let last = others.last, last.part.end == part.offset, last.from + last.part.length == from {
                others[others.count - 1].part = ByteRange(last.part.offset..<part.end)
            } else {
                others.append((part, from))
            }
        }
        try await read(others, of: range, into: buffer)
    }

    /// The disk has lost some of what was saved.
    func lostData() -> BlockError? {
        state.value.lost = state.value.lost ?? file.writebackFailure()
        return state.value.lost
    }

    /// What the page cache has, and then the rest, many at a time, as it waits for the disk.
    private func read(
        _ parts: [(part: ByteRange, from: UInt64)], of range: ByteRange, into buffer: IOSlice
    ) async throws(BlockError) {
        var late: [(from: ByteRange, slice: IOSlice)] = []
        for (index, (part, from)) in parts.enumerated() {
            // Each is short, and many are long.
            if index % 16 == 15 { _ = await file.engine.letOthersIn() }
            let (slice, from) = (
                Self.slice(of: buffer, part, in: range), ByteRange(offset: from, length: part.length)
            )
            if !file.readAtOnce(from, into: slice) { late.append((from, slice)) }
        }
        guard late.count > 1 else {
            for (from, slice) in late { try await file.read(from, into: slice) }
            return
        }
        let failure = await withTaskGroup(of: BlockError?.self) { [file] group in
            var failure: BlockError?
            for (index, (from, slice)) in late.enumerated() {
                // Others have requests of the disk, too.
                if index >= 16, let ended = await group.next() { failure = failure ?? ended }
                group.addTask {
                    do throws(BlockError) { try await file.read(from, into: slice) } catch { return error }
                    return nil
                }
            }
            for await ended in group { failure = failure ?? ended }
            return failure
        }
        if let failure { throw failure }
    }

    private static func slice(of buffer: IOSlice, _ part: ByteRange, in range: ByteRange) -> IOSlice {
        buffer[Int(part.offset - range.offset)..<Int(part.end - range.offset)]
    }

    /// The log has so much in memory that `sendNext` should be called.
    var shouldSendOn: Bool { state.value.log?.shouldSend ?? false }

    /// Sends on a part of what the log has in memory, past the page cache unless it `isReadSoon`; false when that is little.
    func sendNext(isReadSoon: Bool) async throws(BlockError) -> Bool {
        defer { noteUsed() }
        guard let log = state.value.log else { return false }
        return try await log.sendNext(to: file, at: logStart, isReadSoon: isReadSoon)
    }

    /// How much it holds of `range`, in bytes.
    func held(in range: ByteRange) -> UInt64 {
        settle()
        return UInt64(state.value.staged.count(in: blocks(of: range))) * JobRecord.blockSize
    }

    /// The first part of `range`, whole blocks, of which it holds at most so many; not empty.
    func prefix(of range: ByteRange, holding limit: Int) -> ByteRange {
        settle()
        let end = state.value.staged.prefix(of: blocks(of: range), holding: limit).upperBound
        return range.prefix(UInt64(end) * JobRecord.blockSize - range.offset)
    }

    /// The space of whole blocks is free; true when it is to be punched.
    func forget(_ range: ByteRange) -> Bool {
        settle()
        let blocks = blocks(of: range)
        var inLog = 0
        if let log = state.value.log, log.held > 0 {
            let before = log.held
            state.withState { state in state.staged.forEach(in: blocks) { log.forget($0) } }
            inLog = before - log.held
        }
        let cleared = state.withState { $0.staged.clear(blocks) }
        state.value.outside -= cleared - inLog
        noteUsed()
        return state.value.isDoubled ? cleared > 0 : cleared > inLog
    }

    /// Gives the space of whole blocks back to the file system.
    func punch(_ range: ByteRange) async {
        // Only a favour to the file system: what stays goes with the file, and the limit looks at what is free.
        try? await file.discard(range.clamped(to: ByteRange(offset: 0, length: logStart)))
    }

    /// The same for a part of the log that nobody needs any more; false when there is none.
    func punchLog() async -> Bool { await state.value.log?.punchNext(file, at: logStart) ?? false }

    /// After a restart: counts what is there.
    func recount() async throws(BlockError) {
        var rest = ByteRange(offset: 0, length: logStart)
        while !rest.isEmpty {
            for extent in try await file.extents(in: rest) {
                if !extent.isZero { count(extent.range) }
                rest = rest.dropFirst(extent.range.end - rest.offset)
            }
        }
        if let log = state.value.log {
            for (index, block) in log.blocks.enumerated() {
                // They may be many.
                if index % 4096 == 4095 { _ = await file.engine.letOthersIn() }
                state.withState { $0.noteInLog(block) }
            }
            await log.punchFree(file, at: logStart)
        }
        noteUsed()
        await lookForSpace()
    }

    private func count(_ range: ByteRange) {
        settle()
        let blocks = blocks(of: range)
        state.withState { state in
            let added = state.staged.set(blocks)
            state.outside += added
            if let log = state.log, added < blocks.count, blocks.contains(where: { log.place(of: $0) != nil })
            {
                state.isDoubled = true
            }
        }
        noteUsed()
    }

    private func noteUsed() {
        let (outside, log) = (UInt64(state.value.outside) * JobRecord.blockSize, state.value.log?.length ?? 0)
        used.store(outside + log, ordering: .relaxed)
    }

    private func blocks(of range: ByteRange) -> Range<Int> {
        Int(range.offset / JobRecord.blockSize)..<Int(range.end.dividedRoundingUp(by: JobRecord.blockSize))
    }
}
