package import Glibc

/// Does a drive's or a target's file I/O, and is the executor of the code that serves it.
///
/// All code that touches a device runs on its engine: plain `async` functions that never change thread, so that the
/// steps between two `await`s are atomic among themselves and need no lock. Two kinds stand behind this protocol:
/// `RingEngine` (one thread with an io_uring) and `ThreadsEngine` (one thread, and workers that make blocking calls).
/// The operations are called on the engine's executor. Each returns what the system call would: a count of bytes or
/// zero, or a negated errno; none retries, resumes short transfers or allocates buffers — `HostFile` does.
package protocol IOEngine: TaskExecutor, SerialExecutor {
    /// "ring" or "threads", with a name for logs.
    var name: String { get }

    /// True on this engine's own thread.
    var isCurrent: Bool { get }
    /// The same at less cost, of an engine that can.
    var owner: EngineOwner { get }

    func read(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64) async -> Int
    /// The same of a descriptor that is read past the page cache: an engine must not make its own thread wait for the disk,
    /// which is to have the request at once.
    func readDirectly(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64) async
        -> Int
    /// Begins `read`, or `readDirectly` where it is to be `past` the page cache, and calls `done` in a step of its own on this
    /// engine's thread with what came of it: for who serves so many requests that a task for each is what takes the time.
    /// False when the engine does not do that; then nothing is called.
    func beginRead(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64, past: Bool,
        _ done: @escaping @Sendable (Int) -> Void
    ) -> Bool
    /// The same for `write`.
    func beginWrite(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64,
        _ done: @escaping @Sendable (Int) -> Void
    ) -> Bool
    /// Calls `body` in a step of its own on this engine's thread, after the other calls for what has completed.
    func callSoon(_ body: @escaping @Sendable () -> Void)
    func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int
    /// The same for a file on a disk of this host, which the page cache takes at memory speed: an engine may write it on
    /// its own thread, unless that serves several drives.
    func writeQuickly(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int
    /// What the page cache has of these bytes, in this step; nil where that is nothing, or the engine does not look.
    func readAtOnce(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int?
    /// `writeQuickly` in this step; nil when the engine does not do that by itself.
    func writeAtOnce(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> Int?
    /// fsync, or fdatasync where `dataOnly`.
    func synchronize(_ descriptor: Int32, dataOnly: Bool) async -> Int
    func allocate(_ descriptor: Int32, mode: Int32, _ range: ByteRange) async -> Int
    /// sync_file_range with SYNC_FILE_RANGE flags.
    func synchronizeRange(_ descriptor: Int32, _ range: ByteRange, flags: UInt32) async -> Int

    /// Takes a connection from a listening socket, which is non-blocking: a descriptor, close-on-exec. shutdown(2) of the
    /// listener ends the wait with an error.
    func accept(_ listener: Int32) async -> Int
    /// Receives what has arrived at a stream socket, waiting for the first byte: a count, 0 at the end. With `all` an
    /// engine that can waits until `bytes` is full; fewer may come all the same. shutdown(2) of the socket ends the wait.
    func receive(_ socket: Int32, _ bytes: UnsafeMutableRawBufferPointer, all: Bool) async -> Int
    /// Sends to a stream socket: a count of at least 1, often short. At most 1024 parts; they and the bytes they name stay
    /// as they are until this returns. shutdown(2) of the socket ends the wait with an error.
    func send(_ socket: Int32, _ parts: UnsafeMutableBufferPointer<iovec>) async -> Int
    /// The same in this step, as far as the socket has room: a count or a negated errno; nil when it has none, or the engine
    /// does not do that by itself.
    func sendAtOnce(_ socket: Int32, _ parts: UnsafeMutableBufferPointer<iovec>) -> Int?

    /// Whether the page cache has all of these bytes, so that `fill` is likely to do it; false, too, where the engine does not look.
    func hasCached(_ descriptor: Int32, _ range: ByteRange) -> Bool
    /// Fills an empty pipe with the pages that the page cache has of these bytes, in this step; false, with the pipe empty, where
    /// it has not all of them, or the engine does not look.
    func fill(_ pipe: PagePipe, from descriptor: Int32, _ range: ByteRange) -> Bool
    /// Sends what a pipe has, in this step, as far as the socket has room: a count or a negated errno; nil when it has none.
    func sendAtOnce(_ socket: Int32, from pipe: PagePipe) -> Int?
    /// Returns 0 when the socket has room again, or has ended; else a negated errno.
    func waitForRoom(_ socket: Int32) async -> Int

    /// Runs a call that may block (open, lseek, rename, ioctl, locks) on a thread of this engine that may, and
    /// resumes on the engine's executor. Such calls of one engine may run at the same time.
    func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result

    /// Returns when whatever has completed meanwhile has had its turn, and who has waited here for longer: to be called between
    /// long steps. How many turns that took, at least 1.
    func letOthersIn() async -> Int

    /// Somebody will ask again as soon as what is being answered has arrived: an engine may wait for that awake.
    func expectMore()

    /// Returns after so many nanoseconds, fewer than 10⁹: true then. False, and earlier, when this engine has something else to do,
    /// and at once while it lets others in or somebody is expected, off its thread, where it is shared, and where it does not do that.
    func pause(nanoseconds: UInt64) async -> Bool

    /// Writes that bypass the page cache wait for the disk, and for each other, without holding a thread.
    var writesAsynchronously: Bool { get }

    /// Several drives are served from now on: the engine's own thread makes no call that the disk of one could hold up.
    func share()

    /// Ends the engine's threads once nothing is in flight. Nothing may be enqueued afterwards.
    func shutDown() async
}

extension IOEngine {
    package var owner: EngineOwner { EngineOwner(nil) }

    package func readDirectly(
        _ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) async -> Int { await read(descriptor, bytes, at: offset) }

    package func writeQuickly(
        _ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64
    ) async -> Int { await write(descriptor, bytes, at: offset) }

    package func beginRead(
        _: Int32, _: UnsafeMutableRawBufferPointer, at _: UInt64, past _: Bool,
        _: @escaping @Sendable (Int) -> Void
    ) -> Bool { false }

    package func beginWrite(
        _: Int32, _: UnsafeRawBufferPointer, at _: UInt64, _: @escaping @Sendable (Int) -> Void
    ) -> Bool { false }

    package func callSoon(_ body: @escaping @Sendable () -> Void) {
        // It has begun nothing that it could call for.
        preconditionFailure("the engine \(name) begins no transfers")
    }

    package func readAtOnce(_: Int32, _: UnsafeMutableRawBufferPointer, at _: UInt64) -> Int? { nil }

    package func writeAtOnce(_: Int32, _: UnsafeRawBufferPointer, at _: UInt64) -> Int? { nil }

    package func letOthersIn() async -> Int {
        await Task.yield()
        return 1
    }

    package func expectMore() {}

    package func pause(nanoseconds _: UInt64) async -> Bool { false }

    package func share() {}

    package var writesAsynchronously: Bool { false }

    // Engines of tests need no sockets.
    package func accept(_: Int32) async -> Int { Int(-ENOSYS) }
    package func receive(_: Int32, _: UnsafeMutableRawBufferPointer, all _: Bool) async -> Int {
        Int(-ENOSYS)
    }
    package func send(_: Int32, _: UnsafeMutableBufferPointer<iovec>) async -> Int { Int(-ENOSYS) }
    package func sendAtOnce(_: Int32, _: UnsafeMutableBufferPointer<iovec>) -> Int? { nil }

    package func hasCached(_: Int32, _: ByteRange) -> Bool { false }
    package func fill(_: PagePipe, from _: Int32, _: ByteRange) -> Bool { false }
    package func sendAtOnce(_: Int32, from _: PagePipe) -> Int? { nil }
    package func waitForRoom(_: Int32) async -> Int { Int(-ENOSYS) }

    /// Runs `body` on this engine's executor and returns to the caller's.
    package func run<Result: Sendable, Failure: Error>(
        _ body: @Sendable () async throws(Failure) -> Result
    ) async throws(Failure) -> Result {
        // withTaskExecutorPreference rethrows untyped; the result carries the type over.
        let result = await withTaskExecutorPreference(self) { () async -> Swift.Result<Result, Failure> in
            do throws(Failure) { return .success(try await body()) } catch { return .failure(error) }
        }
        return try result.get()
    }

    /// Traps when called elsewhere than on this engine's thread.
    package func preconditionCurrent() {
        precondition(isCurrent, "the state of a device is touched on its engine \(name) only")
    }
}
