internal import CBlockIO
internal import Glibc

/// Transfers that a ring's thread makes by itself, since that is quicker than to ask the ring.
///
/// A read that the page cache can answer costs a microsecond; a small write into the page cache costs less than the worker
/// thread to which the kernel gives it on many file systems; a short answer that leaves at once is with its reader while
/// the thread still goes round. A long write whose bytes have just been received is best made where they are in the cache.
/// But where the kernel holds back writers, because too much of what they wrote is not on the disk yet, a write takes as
/// long as it likes, and with it everything that the thread serves: when they are slow, writes go to the ring for a while.
/// Not when the thread was only put off its processor, or the host of this machine had to find memory: that would be no
/// better elsewhere. A turn of the thread has a bound, too, so that code which never waits does not keep others from what
/// they wait for; a slow write ends it.
final class InlineTransfers {
    /// Longer writes that only begin are better with a worker, beside whom the thread does something else.
    static let maximumQuickWrite = 64 << 10
    private static let slowWriteNanoseconds: UInt64 = 2_000_000
    /// After a slow write it is looked at for so long whether writes wait.
    private static let watchNanoseconds: UInt64 = 1_000_000_000
    /// What takes that long waits.
    private static let waitNanoseconds: UInt64 = 50_000_000
    /// How many times as long as a slow write took none is tried: of the time in which writes wait, a twentieth is lost to
    /// those of up to 50 ms.
    private static let pauseFactor: UInt64 = 20
    private static let longestPauseNanoseconds: UInt64 = 1_000_000_000
    private static let maximumSend = 64 << 10
    /// What a turn may spend, in bytes of reads; small transfers count as more than they are.
    private static let turn = 8 << 20
    private static let leastRead = 16 << 10
    private static let leastWrite = 32 << 10
    /// After that many reads in a row that the cache could not answer, as many as `skip` are not tried.
    private static let missesBeforeSkipping = 8
    private static let skip = 32

    private var left = InlineTransfers.turn
    private var misses = 0
    private var readsToSkip = 0
    private var writesPausedUntil: UInt64 = 0
    private var writesWatchedUntil: UInt64 = 0
    private let now: () -> UInt64
    private let waits: () -> UInt64

    /// `now` is a clock in nanoseconds, `waits` says how often the thread has waited for something.
    init(now: @escaping () -> UInt64 = cblockio_now, waits: @escaping () -> UInt64 = waitsOfThread) {
        self.now = now
        self.waits = waits
    }

    /// How often the calling thread has waited for something.
    static func waitsOfThread() -> UInt64 { cblockio_waits() }

    /// The engine has looked at what others wait for.
    func beginTurn() { left = Self.turn }

    /// What the page cache has of a file's bytes: a count or a negated errno; nil when the ring is to do it.
    func read(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int? {
        guard left > 0 else { return nil }
        guard readsToSkip == 0 else {
            readsToSkip -= 1
            return nil
        }
        let count = Int(cblockio_pread_cached(descriptor, bytes.baseAddress, bytes.count, offset))
        guard count != Int(-EAGAIN), count != Int(-EOPNOTSUPP) else {
            misses += 1
            if misses >= Self.missesBeforeSkipping { readsToSkip = Self.skip }
            return nil
        }
        misses = 0
        left -= max(count, Self.leastRead)
        return count
    }

    /// Fills a pipe with what the page cache has; false when it has not all of it, or the turn is over.
    func fill(_ pipe: PagePipe, from descriptor: Int32, _ range: ByteRange) -> Bool {
        guard left > 0, pipe.fill(from: descriptor, range) else { return false }
        // Nothing is copied: it takes as long as a read of an eighth.
        left -= max(pipe.count / 8, Self.leastRead)
        return true
    }

    /// Writes a piece into the page cache: a count or a negated errno; nil when the ring is to do it.
    func write(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> Int? {
        guard left > 0 else { return nil }
        let start = now()
        // Once one was slow a long write might take very long.
        guard start >= (bytes.count > Self.maximumQuickWrite ? writesWatchedUntil : writesPausedUntil) else {
            return nil
        }
        // To ask takes a system call: only while there is reason to.
        let waitsBefore = start < writesWatchedUntil ? waits() : nil
        let count = Int(cblockio_pwrite(descriptor, bytes.baseAddress, bytes.count, offset))
        left -= max(count, Self.leastWrite)
        noteWrite(from: start, to: now(), waitsBefore)
        return count
    }

    private func noteWrite(from start: UInt64, to end: UInt64, _ waitsBefore: UInt64?) {
        let length = end - start
        guard length > Self.slowWriteNanoseconds else { return }
        left = 0
        if length > Self.waitNanoseconds || waitsBefore.map({ waits() > $0 }) ?? false {
            writesPausedUntil = end + min(length * Self.pauseFactor, Self.longestPauseNanoseconds)
        }
        writesWatchedUntil = max(end, writesPausedUntil) + Self.watchNanoseconds
    }

    /// Sends what a socket's buffer has room for: a count or a negated errno; nil when the ring is to do it.
    func send(_ socket: Int32, _ parts: UnsafeMutableBufferPointer<iovec>) -> Int? {
        var total = 0
        for part in parts {
            total += part.iov_len
            if total > Self.maximumSend { return nil }
        }
        let count = Int(cblockio_send(socket, parts.baseAddress, parts.count))
        return count == Int(-EAGAIN) ? nil : count
    }
}
