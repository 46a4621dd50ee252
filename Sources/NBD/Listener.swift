internal import BlockIO
internal import CBlockIO
internal import Glibc

/// The sockets that listen at an address: one, or one for each address that a host's name stands for.
struct Listener: Sendable {
    let sockets: [Socket]
    /// With the port that the system chose.
    let address: NBDAddress
    private let file: FileMark?

    /// Which file a socket is.
    private struct FileMark: Sendable {
        var path: String
        var device: dev_t
        var inode: ino_t
    }

    private static let backlog: Int32 = 128

    /// Listens; blocks.
    static func open(_ address: NBDAddress) throws(BlockError) -> Listener {
        switch address {
        case .unix(let path): try openUnix(path)
        case .tcp(let host, let port): try openTCP(host, port)
        }
    }

    /// Removes the socket's file unless another one has taken its place; blocks.
    func removeFile() {
        guard let file, let status = Self.status(file.path), status.st_dev == file.device,
            status.st_ino == file.inode
        else { return }
        // One that cannot be removed is replaced by the next server.
        unlink(file.path)
    }

    // MARK: Unix

    private static func openUnix(_ path: String) throws(BlockError) -> Listener {
        let what = "Couldn't listen on unix:\(path)"
        try removeStale(path, what)
        let socket = Socket(try checked(cblockio_listening_socket(AF_UNIX), what))
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let fits = withUnsafeMutableBytes(of: &address.sun_path) { room in
            // With its NUL, which the zeroed rest is.
            guard path.utf8.count < room.count, !path.utf8.contains(0) else { return false }
            room.copyBytes(from: path.utf8)
            return true
        }
        guard fits else { throw BlockError(what, errno: ENAMETOOLONG) }
        let bound = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(socket.descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0 ? 0 : -errno
            }
        }
        _ = try checked(bound, what)
        let file = status(path).map { FileMark(path: path, device: $0.st_dev, inode: $0.st_ino) }
        let listener = Listener(sockets: [socket], address: .unix(path: path), file: file)
        // Nobody can connect before it listens.
        guard chmod(path, 0o660) == 0, listen(socket.descriptor, backlog) == 0 else {
            let error = BlockError(what, errno: errno)
            listener.removeFile()
            throw error
        }
        return listener
    }

    /// Removes a socket's file that nobody listens on any more. One that answers is an error, and so is anything else.
    private static func removeStale(_ path: String, _ what: String) throws(BlockError) {
        guard let status = status(path) else { return }
        guard status.st_mode & S_IFMT == S_IFSOCK else {
            throw BlockError(.alreadyExists, "\(what): there is a file that is no socket")
        }
        switch cblockio_answers(path) {
        case -ECONNREFUSED:
            guard unlink(path) == 0 || errno == ENOENT else {
                throw BlockError(
                    "\(what): the socket that another server left there can't be removed", errno: errno)
            }
        case -ENOENT: return
        // EAGAIN: somebody listens and has no time.
        case 0..., -EAGAIN: throw BlockError(.busy, "\(what): another process answers there")
        case let failure: throw BlockError(what, errno: -failure)
        }
    }

    private static func status(_ path: String) -> stat? {
        var status = stat()
        return lstat(path, &status) == 0 ? status : nil
    }

    // MARK: TCP

    private static func openTCP(_ host: String, _ port: UInt16) throws(BlockError) -> Listener {
        let what = "Couldn't listen on tcp://\(host):\(port)"
        var hints = addrinfo()
        hints.ai_flags = AI_PASSIVE
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(host, String(port), &hints, &found)
        guard result == 0 else {
            throw BlockError(.notFound, "\(what): \(String(cString: gai_strerror(result)))")
        }
        defer { freeaddrinfo(found) }
        var sockets: [Socket] = []
        var chosen = port
        var failure = BlockError(what, errno: EADDRNOTAVAIL)
        var next = found
        while let info = next?.pointee {
            next = info.ai_next
            let socket: Socket
            do throws(BlockError) {
                socket = try bindTCP(info, port: chosen, what)
            } catch {
                // A name may stand for addresses of a family that this host does not have.
                if error.errno != EADDRNOTAVAIL && error.errno != EAFNOSUPPORT { throw error }
                failure = error
                continue
            }
            chosen = try portNumber(of: socket, what)
            sockets.append(socket)
        }
        guard !sockets.isEmpty else { throw failure }
        return Listener(sockets: sockets, address: .tcp(host: host, port: chosen), file: nil)
    }

    private static func bindTCP(_ info: addrinfo, port: UInt16, _ what: String) throws(BlockError) -> Socket {
        let socket = Socket(try checked(cblockio_listening_socket(info.ai_family), what))
        let descriptor = socket.descriptor
        _ = try checked(cblockio_set_option(descriptor, SOL_SOCKET, SO_REUSEADDR, 1), what)
        if info.ai_family == AF_INET6 {
            _ = try checked(cblockio_set_option(descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, 1), what)
        }
        var storage = sockaddr_storage()
        guard let address = info.ai_addr, Int(info.ai_addrlen) <= MemoryLayout<sockaddr_storage>.size else {
            throw BlockError(what, errno: EAFNOSUPPORT)
        }
        memcpy(&storage, address, Int(info.ai_addrlen))
        // Both families keep the port in the same place.
        withUnsafeMutableBytes(of: &storage) {
            $0.storeBytes(of: port.bigEndian, toByteOffset: 2, as: UInt16.self)
        }
        let bound = withUnsafePointer(to: &storage) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, info.ai_addrlen) == 0 ? 0 : -errno
            }
        }
        _ = try checked(bound, what)
        _ = try checked(listen(descriptor, backlog) == 0 ? 0 : -errno, what)
        return socket
    }

    private static func portNumber(of socket: Socket, _ what: String) throws(BlockError) -> UInt16 {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let result = withUnsafeMutablePointer(to: &storage) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                getsockname(socket.descriptor, $0, &length) == 0 ? 0 : -errno
            }
        }
        _ = try checked(result, what)
        return withUnsafeBytes(of: &storage) { $0.bigEndian(at: 2, as: UInt16.self) }
    }

    private static func checked(_ result: Int32, _ what: String) throws(BlockError) -> Int32 {
        guard result >= 0 else { throw BlockError(what, errno: -result) }
        return result
    }
}
