internal import CBlockIO
internal import Glibc
internal import Synchronization

/// A stream socket; closed once, by its owner, when nobody uses it any more.
final class Socket: Sendable {
    /// For the owner, who closes it.
    let descriptor: Int32
    private let isUnix: Bool
    private let isOpen = Mutex(true)

    /// Takes over an open descriptor.
    init(_ descriptor: Int32, isUnix: Bool = false) {
        self.descriptor = descriptor
        self.isUnix = isUnix
    }

    deinit { close() }

    /// Ends what anybody sends, receives or accepts, at once and for good; harmless at any time.
    func shutDown() {
        isOpen.withLock { isOpen in
            // An error means that the peer was quicker.
            if isOpen { _ = cblockio_shutdown(descriptor) }
        }
    }

    func close() {
        isOpen.withLock { isOpen in
            // Nothing is lost with a socket whose close fails.
            if isOpen { _ = cblockio_close(descriptor) }
            isOpen = false
        }
    }

    /// Whether nothing has arrived that was not received; for the owner.
    var isEmpty: Bool { cblockio_unreceived(descriptor) == 0 }

    /// How much memory what was sent takes until the peer has received it, in bytes; 0 of a TCP socket, where nobody knows.
    var unfetched: Int { isUnix ? Int(cblockio_unfetched(descriptor)) : 0 }

    /// Answers leave at once; a long one in one go, instead of a piece each time that the client has taken one. A peer that has gone
    /// silently is found out some day.
    func prepare() {
        // All are a matter of pace: a socket that refuses them works.
        if isUnix {
            _ = cblockio_set_option(descriptor, SOL_SOCKET, SO_SNDBUF, 1 << 20)
        } else {
            _ = cblockio_set_option(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, 1)
            _ = cblockio_set_option(descriptor, SOL_SOCKET, SO_KEEPALIVE, 1)
        }
    }
}
