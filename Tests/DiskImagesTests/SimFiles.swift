internal import BlockIO
internal import Glibc
internal import Synchronization
internal import TestKit

/// The bytes of a file as they are in the page cache, and as they would be after a power loss.
///
/// What was written since the last flush is known unit by unit in all its versions: a power loss leaves any of them, or
/// what was durable, each unit for itself.
struct SimFile: Sendable {
    let unit: Int
    private(set) var cache: [UInt8]
    private var durable: [UInt8]
    private var unflushed: [Int: [(number: UInt64, bytes: [UInt8])]] = [:]
    private(set) var writes: UInt64 = 0

    init(_ bytes: [UInt8], unit: Int) {
        self.unit = unit
        cache = bytes
        durable = bytes
    }

    mutating func write(at offset: Int, _ bytes: UnsafeRawBufferPointer) {
        guard !bytes.isEmpty else { return }
        if cache.count < offset + bytes.count { setSize(offset + bytes.count) }
        cache.withUnsafeMutableBytes {
            UnsafeMutableRawBufferPointer(rebasing: $0[offset..<offset + bytes.count]).copyMemory(from: bytes)
        }
        writes += 1
        for index in offset / unit...(offset + bytes.count - 1) / unit {
            let content = Array(cache[index * unit..<min(cache.count, (index + 1) * unit)])
            unflushed[index, default: []].append((writes, content))
        }
    }

    func read(at offset: Int, into bytes: UnsafeMutableRawBufferPointer) {
        let count = max(0, min(bytes.count, cache.count - offset))
        if count > 0 {
            cache.withUnsafeBytes {
                bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[offset..<offset + count]))
            }
        }
        if let start = bytes.baseAddress, count < bytes.count {
            memset(start + count, 0, bytes.count - count)
        }
    }

    mutating func setSize(_ size: Int) {
        if size > cache.count {
            cache = Self.copy(cache, size: size)
        } else if size < cache.count {
            cache = Self.copy(cache, size: size)
            if durable.count > size { durable = Self.copy(durable, size: size) }
            for (index, versions) in unflushed where (index + 1) * unit > size {
                let length = size - index * unit
                unflushed[index] =
                    length <= 0 ? nil : versions.map { ($0.number, Array($0.bytes.prefix(length))) }
            }
        }
    }

    /// Makes durable what was written up to and with `number`, a value that `writes` had.
    mutating func flush(upTo number: UInt64) {
        if durable.count < cache.count {
            durable = Self.copy(durable, size: cache.count)
        }
        for (index, versions) in unflushed {
            guard let last = versions.last(where: { $0.number <= number }) else { continue }
            durable.withUnsafeMutableBytes { durable in
                UnsafeMutableRawBufferPointer(rebasing: durable[(index * unit)...]).copyBytes(
                    from: last.bytes)
            }
            let rest = versions.filter { $0.number > number }
            unflushed[index] = rest.isEmpty ? nil : rest
        }
    }

    /// `bytes` made longer with zeroes, or shorter; quick in debug builds, too.
    private static func copy(_ bytes: [UInt8], size: Int) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            let kept = min(size, bytes.count)
            bytes.withUnsafeBytes { UnsafeMutableRawBufferPointer(buffer).copyBytes(from: $0[..<kept]) }
            if let start = buffer.baseAddress, kept < size { memset(start + kept, 0, size - kept) }
            count = size
        }
    }

    /// The host loses its power.
    mutating func losePower(_ generator: inout SeededGenerator) {
        var left = durable
        // The file's length is either the old or the new one.
        if generator.oneIn(2), cache.count > left.count {
            left = Self.copy(left, size: cache.count)
        }
        let keepsAll = generator.oneIn(8)
        for (index, versions) in unflushed.sorted(by: { $0.key < $1.key }) {
            let choice = keepsAll ? versions.count : Int.random(in: 0...versions.count, using: &generator)
            guard choice > 0 else { continue }
            let (start, bytes) = (index * unit, versions[choice - 1].bytes)
            guard start + bytes.count <= left.count else { continue }
            left.replaceSubrange(start..<start + bytes.count, with: bytes)
        }
        self = SimFile(left, unit: unit)
    }
}

/// An engine without threads and real time that keeps the files' bytes in memory: the test's own thread runs its jobs,
/// and requests land piece by piece in the order of a virtual clock. One seed, one history.
///
/// The files exist (a `HostFile` looks at them, locks them and sets their size), but nothing is read or written there. At
/// its end, after so many steps, each piece that is on its way has landed or not, and from then on every request fails
/// and changes nothing.
final class SimFileEngine: IOEngine {
    private struct Event {
        let due: UInt64
        let continuation: UnsafeContinuation<Void, Never>
    }

    private struct Landing {
        let inode: UInt64
        let offset: Int
        let bytes: UnsafeRawBufferPointer
    }

    private struct State {
        var jobs: [UnownedJob] = []
        var events: [Event] = []
        var now: UInt64 = 0
        var generator: SeededGenerator
        var thread: pthread_t?
        var files: [UInt64: SimFile]
        var inodes: [Int32: UInt64] = [:]
        var landings: [UInt64: Landing] = [:]
        var nextLanding: UInt64 = 0
        var steps = 0
        var end = Int.max
        var isDead = false
        var atEnd: (@Sendable () -> Void)?
        var flushes = 0
        var reads = 0
        /// Begun reads that end when they are let go; nil when none is held.
        var held: [() -> Void]?
    }

    let name = "simulation"
    // SAFETY: everything, the pointers in it included, is touched by the one thread that drives the engine.
    private nonisolated(unsafe) var state: State

    init(files: [UInt64: SimFile], seed: UInt64) {
        state = State(generator: SeededGenerator(seed), files: files)
    }

    var isCurrent: Bool { state.thread.map { pthread_equal($0, pthread_self()) != 0 } ?? true }
    var isDead: Bool { state.isDead }
    var files: [UInt64: SimFile] { state.files }
    var steps: Int { state.steps }
    /// How many flushes of files were made.
    var flushes: Int { state.flushes }
    /// How many reads of files were made.
    var reads: Int { state.reads }

    /// Reads that are begun from now on reach the disk when they are let go.
    func holdBegunReads() { state.held = [] }

    func letBegunReadsGo() {
        let held = state.held ?? []
        state.held = nil
        for read in held { read() }
    }

    func enqueue(_ job: consuming ExecutorJob) { state.jobs.append(UnownedJob(job)) }
    func checkIsolated() { preconditionCurrent() }
    func shutDown() async {}

    /// Lets the process end `steps` from now; `atEnd` is called then.
    func end(after steps: Int, _ atEnd: @escaping @Sendable () -> Void) {
        state.end = state.steps + steps
        state.atEnd = atEnd
    }

    /// Runs `main` and whatever it starts until nothing can go on; false when `main` did not come to its end.
    func drive(_ main: @escaping @Sendable () async -> Void) -> Bool {
        let isDone = Locked(false)
        state.thread = pthread_self()
        // Ends before this function does, or hangs for ever, which is what this function tells.
        _ = Task(executorPreference: self) {
            await main()
            isDone.withLock { $0 = true }
        }
        while step() {}
        return isDone.value
    }

    private func step() -> Bool {
        state.steps += 1
        if state.steps >= state.end, !state.isDead { die() }
        if !state.jobs.isEmpty {
            let index =
                state.generator.oneIn(4) ? Int.random(in: 0..<state.jobs.count, using: &state.generator) : 0
            state.jobs.remove(at: index).runSynchronously(on: asUnownedTaskExecutor())
            return true
        }
        guard let next = state.events.indices.min(by: { state.events[$0].due < state.events[$1].due }) else {
            return false
        }
        let event = state.events[next]
        state.events.swapAt(next, state.events.count - 1)
        state.events.removeLast()
        state.now = max(state.now, event.due)
        event.continuation.resume()
        return true
    }

    private func die() {
        state.isDead = true
        for landing in state.landings.sorted(by: { $0.key < $1.key }).map(\.value)
        where state.generator.oneIn(2) {
            state.files[landing.inode]?.write(at: landing.offset, landing.bytes)
        }
        state.atEnd?()
    }

    /// Some time passes: most often little, sometimes much.
    private func pass() async {
        if state.isDead { return }
        let scale: UInt64 = state.generator.oneIn(6) ? 2000 : 60
        let due = state.now + UInt64.random(in: 0..<scale, using: &state.generator)
        await withUnsafeContinuation { state.events.append(Event(due: due, continuation: $0)) }
    }

    private func inode(_ descriptor: Int32) -> UInt64 {
        if let inode = state.inodes[descriptor] { return inode }
        var status = stat()
        precondition(fstat(descriptor, &status) == 0, "a file of the simulation is open")
        let inode = UInt64(status.st_ino)
        state.inodes[descriptor] = inode
        return inode
    }

    func read(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64) async -> Int {
        let inode = inode(descriptor)
        state.reads += 1
        await pass()
        // What is read lands in pieces, too.
        var done = 0
        while done < bytes.count {
            if state.isDead { return Int(-EIO) }
            let count = min(bytes.count - done, state.generator.oneIn(3) ? 65536 : bytes.count)
            state.files[inode]?.read(
                at: Int(offset) + done,
                into: UnsafeMutableRawBufferPointer(rebasing: bytes[done..<done + count]))
            done += count
            if done < bytes.count || state.generator.oneIn(2) { await pass() }
        }
        return state.isDead ? Int(-EIO) : bytes.count
    }

    func readAtOnce(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) -> Int? {
        guard !state.isDead, state.generator.oneIn(2) else { return nil }
        state.reads += 1
        state.files[inode(descriptor)]?.read(at: Int(offset), into: bytes)
        return bytes.count
    }

    /// What it comes to may be less than all.
    func beginRead(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64, past _: Bool,
        _ done: @escaping @Sendable (Int) -> Void
    ) -> Bool {
        guard !state.isDead else { return false }
        if state.held != nil {
            let inode = inode(descriptor)
            state.held?.append {
                self.state.files[inode]?.read(at: Int(offset), into: bytes)
                done(bytes.count)
            }
            return true
        }
        guard state.generator.oneIn(2) else { return false }
        // SAFETY: the memory is the caller's, who leaves it alone until `done` is called.
        nonisolated(unsafe) let bytes = bytes
        // Its end is what `done` tells.
        Task(executorPreference: self) {
            let count = await self.read(descriptor, bytes, at: offset)
            done(count > 0 && self.state.generator.oneIn(8) ? count - 1 : count)
        }
        return true
    }

    /// All, nothing, or a part of it.
    func writeAtOnce(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> Int? {
        guard !state.isDead, state.generator.oneIn(2), let unit = state.files[inode(descriptor)]?.unit
        else { return nil }
        var count = bytes.count
        if state.generator.oneIn(4) {
            let end = Int.random(in: 0..<bytes.count, using: &state.generator) + Int(offset)
            count = max(0, end - end % unit - Int(offset))
        }
        state.files[inode(descriptor)]?.write(
            at: Int(offset), UnsafeRawBufferPointer(rebasing: bytes[..<count]))
        return count
    }

    func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int {
        let inode = inode(descriptor)
        if state.isDead { return Int(-EIO) }
        guard let unit = state.files[inode]?.unit else { return Int(-EBADF) }
        // Up to four pieces, cut where units begin.
        var cuts: Set<Int> = [0, bytes.count]
        for _ in 0..<Int.random(in: 0...3, using: &state.generator) where bytes.count > unit {
            let cut = Int.random(in: 0..<bytes.count, using: &state.generator) + Int(offset)
            cuts.insert(max(0, cut - cut % unit - Int(offset)))
        }
        let sorted = cuts.sorted()
        let pieces = zip(sorted, sorted.dropFirst()).map { start, end in
            Landing(
                inode: inode, offset: Int(offset) + start,
                bytes: UnsafeRawBufferPointer(rebasing: bytes[start..<end]))
        }
        await land(pieces.shuffled(using: &state.generator))
        return state.isDead ? Int(-EIO) : bytes.count
    }

    private func land(_ pieces: [Landing]) async {
        let first = state.nextLanding
        for piece in pieces {
            state.landings[state.nextLanding] = piece
            state.nextLanding += 1
        }
        for (index, piece) in pieces.enumerated() {
            await pass()
            if !state.isDead { state.files[piece.inode]?.write(at: piece.offset, piece.bytes) }
            state.landings[first + UInt64(index)] = nil
        }
        if !state.isDead, state.generator.oneIn(2) { await pass() }
    }

    func synchronize(_ descriptor: Int32, dataOnly: Bool) async -> Int {
        let inode = inode(descriptor)
        state.flushes += 1
        await pass()
        guard let number = state.files[inode]?.writes else { return Int(-EBADF) }
        await pass()
        if state.isDead { return Int(-EIO) }
        state.files[inode]?.flush(upTo: number)
        await pass()
        return state.isDead ? Int(-EIO) : 0
    }

    func allocate(_ descriptor: Int32, mode: Int32, _ range: ByteRange) async -> Int {
        let inode = inode(descriptor)
        guard !state.isDead, let file = state.files[inode] else { return Int(-EIO) }
        // Every mode that is used makes zeroes; with FALLOC_FL_KEEP_SIZE (1) only where the file is.
        let end = mode & 1 != 0 ? min(Int(range.end), file.cache.count) : Int(range.end)
        guard end > Int(range.offset) else { return 0 }
        let zeroes = [UInt8](repeating: 0, count: end - Int(range.offset))
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: zeroes.count, alignment: 16)
        defer { bytes.deallocate() }
        bytes.copyBytes(from: zeroes)
        await land([Landing(inode: inode, offset: Int(range.offset), bytes: UnsafeRawBufferPointer(bytes))])
        return state.isDead ? Int(-EIO) : 0
    }

    func synchronizeRange(_: Int32, _: ByteRange, flags _: UInt32) async -> Int { 0 }

    func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
        let result = body()
        // Descriptors may have been closed and their numbers used again, or files have got another size.
        if !state.isDead {
            for (descriptor, inode) in state.inodes {
                var status = stat()
                guard fstat(descriptor, &status) == 0, UInt64(status.st_ino) == inode else {
                    state.inodes[descriptor] = nil
                    continue
                }
                if let size = state.files[inode]?.cache.count, size != Int(status.st_size) {
                    state.files[inode]?.setSize(Int(status.st_size))
                }
            }
        }
        return result
    }
}
