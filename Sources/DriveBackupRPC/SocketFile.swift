internal import Glibc
internal import NIOCore
internal import NIOPosix

/// The file of a Unix socket that we listen on.
struct SocketFile: Sendable {
    private let path: String
    private let device: dev_t
    private let inode: ino_t

    /// Removes a socket's file that nobody listens on any more. One that answers is an error, and so is anything
    /// but a socket.
    static func removeStale(_ path: String) async throws(RPCStatus) {
        let address = RPCAddress.unix(path: path)
        guard let mode = await onThread({ Self.status(path)?.st_mode }) else { return }
        guard mode & S_IFMT == S_IFSOCK else {
            throw RPCStatus(
                .failedPrecondition, "Couldn't listen on \(address): there is a file which is no socket.")
        }
        do {
            let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
                .connect(unixDomainSocketPath: path).get()
            // It answered, and that was all.
            try? await channel.close()
        } catch {
            switch error.errorNumber {
            case ErrorNumber.connectionRefused:
                let failure = await onThread { unlink(path) == 0 || errno == ENOENT ? nil : errno }
                guard let failure else { return }
                throw RPCStatus(
                    .failedPrecondition,
                    "Couldn't listen on \(address): the socket that another agent left there can't be removed: "
                        + IOError(errnoCode: failure, reason: "unlink").sentence + ".")
            case ErrorNumber.noSuchFile: return
            default:
                throw RPCStatus(.failedPrecondition, "Couldn't listen on \(address): \(error.sentence).")
            }
        }
        throw RPCStatus(
            .failedPrecondition, "Couldn't listen on \(address): another process answers there.")
    }

    /// A socket bound to a new file of that name, which its owner and group may use, and the file. (NIO would remove
    /// whatever has the name at the end.) The socket does not listen yet; the caller closes it.
    static func bind(_ path: String) async throws(RPCStatus) -> (descriptor: CInt, file: SocketFile) {
        let result = await onThread { () -> Result<(descriptor: CInt, file: SocketFile), IOError> in
            let descriptor = socket(
                AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
            guard descriptor >= 0 else { return .failure(IOError(errnoCode: errno, reason: "socket")) }
            var call = "bind"
            if bind(descriptor, to: path) {
                call = "chmod"
                if chmod(path, 0o660) == 0, let status = status(path) {
                    return .success(
                        (descriptor, SocketFile(path: path, device: status.st_dev, inode: status.st_ino)))
                }
            }
            let failure = IOError(errnoCode: errno, reason: call)
            close(descriptor)
            return .failure(failure)
        }
        do {
            return try result.get()
        } catch {
            throw RPCStatus(
                .failedPrecondition, "Couldn't listen on \(RPCAddress.unix(path: path)): \(error.sentence).")
        }
    }

    private static func bind(_ descriptor: CInt, to path: String) -> Bool {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let fits = withUnsafeMutableBytes(of: &address.sun_path) { room in
            // With its NUL, which the zeroed rest is.
            guard path.utf8.count < room.count else { return false }
            room.copyBytes(from: path.utf8)
            return true
        }
        guard fits else {
            errno = ENAMETOOLONG
            return false
        }
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
                Glibc.bind(descriptor, pointer, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
            }
        }
    }

    /// Removes the file unless another socket has taken its place.
    func remove() async {
        await Self.onThread {
            guard let status = Self.status(path), status.st_dev == device, status.st_ino == inode else {
                return
            }
            unlink(path)
        }
    }

    private static func status(_ path: String) -> stat? {
        var status = stat()
        return lstat(path, &status) == 0 ? status : nil
    }

    /// Runs system calls that may take their time where they keep nobody waiting.
    private static func onThread<R: Sendable>(_ body: @escaping @Sendable () -> R) async -> R {
        do {
            return try await NIOThreadPool.singleton.runIfActive(body)
        } catch {
            preconditionFailure("the singleton pool never ends: \(error)")
        }
    }
}
