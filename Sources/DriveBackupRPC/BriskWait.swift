internal import Glibc
internal import Synchronization

/// Waits awake, for some microseconds, for the next bytes of a peer that asks and answers without a pause.
///
/// To sleep and to be woken takes two such peers several times as long as the work between. So who has just sent looks
/// at its socket for a moment before it sleeps; but only if the last bytes came as soon, so that a peer that is merely
/// there costs nothing, and not for a while after it was in vain: then the peer may need this very core.
struct BriskWait {
    /// How long the peer took last, from what we sent to what it sent, in nanoseconds.
    private var lastPause = Int64.max
    private var sentAt: Int64?
    /// How often in a row it was in vain, 10 at most; so many times it is left out then, as a power of two.
    private var failures = 0
    private var leftOut = 0

    /// Bytes have come.
    mutating func received(now: Int64) {
        guard let sentAt else { return }
        lastPause = now - sentAt
        self.sentAt = nil
    }

    /// Bytes were sent. Returns when some have come to `socket`, when `interrupted` is true, or after `longest`
    /// nanoseconds; at once when it is not worth it.
    mutating func sent(to socket: Int32, longest: Int64, interrupted: borrowing Atomic<Bool>) {
        let start = RPCClock.now
        sentAt = start
        guard lastPause < longest else { return }
        guard leftOut == 0 else {
            leftOut -= 1
            return
        }
        var poll = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
        while Glibc.poll(&poll, 1, 0) == 0, !interrupted.load(ordering: .relaxed) {
            if RPCClock.now - start >= longest {
                failures = min(failures + 1, 10)
                leftOut = 1 << failures
                return
            }
        }
        failures = 0
    }
}
