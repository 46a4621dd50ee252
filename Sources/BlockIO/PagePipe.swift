internal import CBlockIO
internal import Glibc

/// A pipe that carries pages of the page cache to a socket: a long read's bytes are not copied on the way.
///
/// What is sent are the pages, not what they held at some time: what is written to them until the peer has received them is
/// seen by it. Whoever answers a read so answers it with what is there when its answer arrives, which is within the time of
/// the read; for bytes that must stay as they were (those of a point in time), or whose place in a file may become another's,
/// it is not for use.
package final class PagePipe: Sendable {
    /// As much as an unprivileged user may have in a pipe by default (pipe(7), `pipe-max-size`).
    private static let wantedCapacity = 1 << 20
    private static let pageSize = UInt64(getpagesize())

    /// How many bytes fit, when they begin at a page's start.
    package let capacity: Int
    // SAFETY: what the pipe has is put there and taken in single steps of one engine.
    private nonisolated(unsafe) var filled = 0
    private let readEnd: Int32
    private let writeEnd: Int32

    /// Throws `.noMemory` and the like where the system gives no descriptors, or no pipe of a useful size.
    package init() throws(BlockError) {
        var ends: [Int32] = [-1, -1]
        let capacity = cblockio_pipe(&ends, Self.wantedCapacity)
        guard capacity >= 0 else {
            throw BlockError("Couldn't make a pipe", errno: Int32(truncatingIfNeeded: -capacity))
        }
        (readEnd, writeEnd, self.capacity) = (ends[0], ends[1], Int(capacity))
    }

    deinit {
        // Nothing is lost with a pipe whose close fails.
        _ = cblockio_close(readEnd)
        _ = cblockio_close(writeEnd)
    }

    /// The bytes that it has.
    package var count: Int { filled }

    /// Whether `range` fits, with the parts of pages at its ends.
    package func holds(_ range: ByteRange) -> Bool {
        // A pipe counts pages, whole or not.
        let first = range.offset.roundedDown(toMultipleOf: Self.pageSize)
        return range.end.roundedUp(toMultipleOf: Self.pageSize) - first <= UInt64(capacity)
    }

    /// See `IOEngine.fill`.
    func fill(from descriptor: Int32, _ range: ByteRange) -> Bool {
        precondition(filled == 0, "what a pipe has is sent before more comes")
        guard holds(range), cblockio_is_cached(descriptor, range.offset, range.length) else { return false }
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
