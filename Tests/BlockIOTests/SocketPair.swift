internal import Glibc
internal import Testing

/// Two connected sockets, which are closed with it.
final class SocketPair: Sendable {
    let near: Int32
    let far: Int32

    init(bufferBytes: Int32? = nil) throws {
        var ends: [Int32] = [-1, -1]
        try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
        if var bytes = bufferBytes {
            setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &bytes, socklen_t(MemoryLayout<Int32>.size))
        }
        (near, far) = (ends[0], ends[1])
    }

    deinit {
        close(near)
        close(far)
    }
}
