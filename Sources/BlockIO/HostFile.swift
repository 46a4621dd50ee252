internal import CBlockIO
internal import Glibc
internal import Synchronization

/// A regular file or a block device of this host, as a device of plain bytes.
///
/// The one place that knows about short transfers, about what file systems support and about what an error of a flush
/// means: once a flush or a write-back failed, data is lost that no later flush will mention, so every later flush
/// of this file fails too.
package final class HostFile: BlockDevice {
    /// What is locked at opening.
    package typealias Lock = (holding: ImageLock.Permissions, unsharing: ImageLock.Permissions)

    package let name: String
    package let engine: any IOEngine
    package let isReadOnly: Bool
    package let limits: BlockLimits
    /// What the file is, whatever its name.
    package let identity: FileIdentity
    /// Other files through which the same bytes are reached: what a loop device lies on.
    package let aliases: [FileIdentity]
    package let isBlockDevice: Bool
    /// No server and no process stands behind it: the page cache takes a write at once.
    let isLocal: Bool
    /// Writes beyond the end make the file longer instead of being refused.
    package let isGrowable: Bool
    /// Of what transfers must be multiples, as all of them bypass the page cache, in bytes; nil where none need.
    package let directUnit: UInt64?
    /// For what has no method here (locks). It is open until `close`.
    package let descriptor: Int32

    /// The number of bytes that can be read: the size at opening, or after the last `setSize` or growing write.
    package var size: UInt64 { currentSize.load(ordering: .acquiring) }

    let currentSize: Atomic<UInt64>
    let state: EngineIsolated<State>
    /// Somebody else has a descriptor of the same open file and ends the locks.
    private let keepsLocks: Bool
    private let isClosed = Atomic(false)
    /// The number is still ours; after `close` no file has it.
    private let hasNumber = Atomic(true)

    struct State: Sendable {
        /// The length changed since the last flush: the next one has to write the inode, too.
        var needsFullFlush = false
        /// Why data may be lost.
        var lostData: BlockError?
        var flushing = Flushing()
        var canZeroRange = true
        var canPunchHoles = true
        var canSynchronizeRange = true
        var bypass: Bypass?
        /// All large writes go there.
        var bypassesAlways = false
        /// How many are on their way there.
        var bypassing = 0
        var directWrites = DirectWrites()
        var lock: ImageLock?
        /// Who is to know when the file was changed.
        var changeTimes: ChangeTimes?
        /// Changes that have begun and not ended.
        var changesInFlight = 0
    }

    /// Opens an existing file, and takes `lock` on it; nothing is created or changed.
    ///
    /// With `direct` all that is read and written bypasses the page cache, whatever its alignment, in units of the disk's or of
    /// `leastUnit` bytes, a power of two up to 4096. Throws `.unsupported`
    /// for anything but a regular file or a block device and where `direct` cannot be, `.locked` when others use it in a
    /// way that does not go with `lock`.
    package static func open(
        _ path: String, readOnly: Bool, growable: Bool = false, direct: Bool = false, leastUnit: UInt64 = 1,
        lock: Lock? = nil, on engine: any IOEngine
    ) async throws(BlockError) -> HostFile {
        let opened: Result<Opened, BlockError> = await engine.blocking {
            Result { () throws(BlockError) in
                try Opened(
                    path: path, readOnly: readOnly, direct: direct ? leastUnit : nil, lock: lock)
            }
        }
        return HostFile(try opened.get(), name: path, isReadOnly: readOnly, isGrowable: growable, engine)
    }

    /// Takes over an open descriptor, which is closed with this file (and at once after an error).
    ///
    /// It loses O_APPEND and O_NONBLOCK and becomes close-on-exec. Throws `.invalid` when it is not open for reading,
    /// or not for writing without `readOnly`. With `keepsLocks` its locks outlive `close`: a `LockKeeper` has them.
    package convenience init(
        adopting descriptor: Int32, name: String, readOnly: Bool, growable: Bool = false, lock: Lock? = nil,
        keepsLocks: Bool = false, engine: any IOEngine
    ) async throws(BlockError) {
        let opened: Result<Opened, BlockError> = await engine.blocking {
            Result { () throws(BlockError) in
                try Opened(adopting: descriptor, name: name, readOnly: readOnly, lock: lock)
            }
        }
        self.init(
            try opened.get(), name: name, isReadOnly: readOnly, isGrowable: growable, keepsLocks: keepsLocks,
            engine)
    }

    private init(
        _ opened: Opened, name: String, isReadOnly: Bool, isGrowable: Bool, keepsLocks: Bool = false,
        _ engine: any IOEngine
    ) {
        self.name = name
        self.engine = engine
        self.isReadOnly = isReadOnly
        self.keepsLocks = keepsLocks
        self.isGrowable = isGrowable && !opened.isBlockDevice
        isBlockDevice = opened.isBlockDevice
        isLocal = opened.isLocal
        directUnit = opened.directUnit
        descriptor = opened.descriptor
        identity = opened.identity
        aliases = opened.aliases
        limits = BlockLimits(optimalGranularity: opened.granularity)
        currentSize = Atomic(opened.size)
        state = EngineIsolated(State(lock: opened.lock), engine: engine)
    }

    deinit {
        // For error paths on which nobody could await `close`; an error of it has nobody to go to here.
        if !isClosed.load(ordering: .acquiring), !keepsLocks { ImageLock.releaseAll(descriptor) }
        if hasNumber.load(ordering: .acquiring) { _ = cblockio_close(descriptor) }
    }

    /// What its path is now, without links; nil where the system does not tell (no `/proc`).
    package func truePath() async -> String? {
        let (descriptor, name) = (descriptor, name)
        // Whoever asks takes the name for it then: what went wrong changes nothing.
        return await engine.blocking { try? Directory.path(of: descriptor, name: name) }
    }

    /// Closes the file, which ends its locks. Flushes nothing.
    ///
    /// The descriptor's number stays taken for as long as anybody has this object: a request that is late, whoever makes it,
    /// fails rather than meet another file.
    package func close() async throws(BlockError) {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        let descriptor = descriptor
        let unlocks = !keepsLocks && state.value.lock != nil
        // Nothing is written past the page cache any more.
        state.value.bypass = nil
        let result = await engine.blocking {
            if unlocks { ImageLock.releaseAll(descriptor) }
            var isTaken: Int32 = 0
            let result = cblockio_vacate(descriptor, &isTaken)
            self.hasNumber.store(isTaken != 0, ordering: .releasing)
            return result
        }
        guard result == 0 else { throw BlockError("Couldn't close \(name)", errno: -result) }
    }

    /// When the file was made, in nanoseconds since 1970, to tell it from a later one of the same inode number; 0 where
    /// the file system does not know. Blocks.
    package func birthTime() -> UInt64 { cblockio_birth_time(descriptor) }

    /// Changes what is locked to exactly `holding` and `unsharing`; after an error it is as before.
    package func changeLock(
        holding: ImageLock.Permissions, unsharing: ImageLock.Permissions
    ) async throws(BlockError) {
        let (old, descriptor, name) = (state.value.lock, descriptor, name)
        let changed: Result<ImageLock, BlockError> = await engine.blocking {
            Result { () throws(BlockError) in
                guard var lock = old else {
                    return try ImageLock.acquire(
                        descriptor, holding: holding, unsharing: unsharing, path: name)
                }
                try lock.change(holding: holding, unsharing: unsharing)
                return lock
            }
        }
        state.value.lock = try changed.get()
    }

    /// Makes the file `bytes` long; what is new reads as zeroes. No write beyond that is in flight.
    package func setSize(_ bytes: UInt64) async throws(BlockError) {
        guard !isReadOnly, !isBlockDevice, bytes <= UInt64(Int64.max) else {
            let why =
                isReadOnly
                ? "it is open for reading only"
                : isBlockDevice ? "it is a block device" : "no file can be that long"
            throw BlockError(.invalid, "Couldn't set the size of \(name) to \(bytes) bytes: \(why)")
        }
        let descriptor = descriptor
        state.value.needsFullFlush = true
        beginChange()
        defer { endChange() }
        // Who changes a part of the last unit makes the file longer.
        let from = min(bytes, size)
        let turn = await beginDirectWrite(ByteRange(from..<UInt64(Int64.max)), alone: true)
        defer { endDirectWrite(turn) }
        let result = await engine.blocking { cblockio_truncate(descriptor, bytes) }
        guard result == 0 else {
            throw BlockError("Couldn't set the size of \(name) to \(bytes) bytes", errno: -result)
        }
        // A flush that came meanwhile has not been of this.
        state.value.needsFullFlush = true
        currentSize.store(bytes, ordering: .releasing)
    }
}
