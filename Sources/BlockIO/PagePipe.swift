internal import CBlockIO
internal import Glibc
internal import Synchronization

/// A pipe that carries pages of the page cache to a socket: a long read's bytes are not copied on the way.
///
/// What is sent are the pages, not what they held at some time: what is written to them until the peer has received them is
/// seen by it. Whoever answers a read so answers it with what is there when its answer arrives, which is within the time of
/// the read; for bytes that must stay as they were (those of a point in time), or whose place in a file may become another's,
/// it is not for use. A peer of this host that does not copy them either holds them for as long as it likes.
package final class PagePipe: Sendable {
    /// As much as an unprivileged user may have in a pipe by default (pipe(7), `pipe-max-size`).
    private static let wantedCapacity = 1 << 20
    /// Less is not worth its descriptors: where a user has many pipes the system makes small ones.
    private static let leastCapacity = 256 << 10
    /// Pipes of the process: they take two descriptors each, and a user's pages in pipes have a bound (`pipe-user-pages-soft`).
    private static let maximumCount = 48
    private static let made = Atomic(0)
    private static let pageSize = UInt64(getpagesize())

    /// How many bytes fit, when they begin at a page's start.
    package let capacity: Int
    // SAFETY: what the pipe has is put there and taken in single steps of one engine.
    private nonisolated(unsafe) var filled = 0
    private let readEnd: Int32
    private let writeEnd: Int32

    /// Nil where the process has as many as it may, or the system gives none of a useful size.
    package init?() {
        guard Self.made.wrappingAdd(1, ordering: .relaxed).newValue <= Self.maximumCount else {
            Self.made.wrappingSubtract(1, ordering: .relaxed)
            return nil
        }
        var ends: [Int32] = [-1, -1]
        let capacity = cblockio_pipe(&ends, Self.wantedCapacity)
        (readEnd, writeEnd, self.capacity) = (ends[0], ends[1], max(0, Int(capacity)))
        if capacity < Self.leastCapacity { return nil }
    }

    deinit {
        Self.made.wrappingSubtract(1, ordering: .relaxed)
        // Nothing is lost with a pipe whose close fails.
        if readEnd >= 0 { _ = cblockio_close(readEnd) }
        if writeEnd >= 0 { _ = cblockio_close(writeEnd) }
    }

    /// The bytes that it has.
    package var count: Int { filled }

    /// Whether `range` fits, with the parts of pages at its ends.
    package func holds(_ range: ByteRange) -> Bool {
        // A pipe counts pages, whole or not.
        let first = range.offset.roundedDown(toMultipleOf: Self.pageSize)
        return range.end.roundedUp(toMultipleOf: Self.pageSize) - first <= UInt64(capacity)
    }

    /// Whether a file's pages are left alone for those who still read them, so that they may be sent.
    static func suits(_ descriptor: Int32) -> Bool { cblockio_keeps_pages(descriptor) }

    /// See `IOEngine.hasCached`.
    static func canBeFilled(from descriptor: Int32, _ range: ByteRange) -> Bool {
        cblockio_is_cached(descriptor, range.offset, Int(range.length))
    }

    /// See `IOEngine.fill`.
    func fill(from descriptor: Int32, _ range: ByteRange) -> Bool {
        precondition(filled == 0, "what a pipe has is sent before more comes")
        guard holds(range), Self.canBeFilled(from: descriptor, range) else { return false }
        let count = cblockio_fill_pipe(writeEnd, descriptor, range.offset, Int(range.length))
        guard count == Int64(range.length) else {
            // Some of it is not there after all.
            cblockio_empty_pipe(readEnd)
            return false
        }
        filled = Int(count)
        return true
    }

    /// See `IOEngine.sendAtOnce`.
    func send(to socket: Int32) -> Int? {
        let count = Int(cblockio_send_from_pipe(socket, readEnd, filled))
        guard count > 0 else { return count == Int(-EAGAIN) ? nil : count }
        filled -= count
        return count
    }
}
