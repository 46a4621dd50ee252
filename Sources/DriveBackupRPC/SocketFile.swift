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

    /// Lets the owner and the group use the socket that was just made, and remembers that it is ours.
    static func claim(_ path: String) async throws(RPCStatus) -> SocketFile {
        let file = await onThread { () -> SocketFile? in
            guard chmod(path, 0o660) == 0, let status = status(path) else { return nil }
            return SocketFile(path: path, device: status.st_dev, inode: status.st_ino)
        }
        if let file { return file }
        throw RPCStatus(
            .failedPrecondition, "Couldn't listen on unix:\(path): the mode of the socket can't be set.")
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
