internal import BlockIO
internal import Glibc
internal import Synchronization

/// A directory of the agent's own, made where it was missing and held against other agents until it is
/// released.
package final class DirectoryLock: Sendable {
    package let path: String
    private let descriptor: Int32
    private let isReleased = Atomic(false)

    /// Makes the directory (0700, parents as well) and locks it. Blocks; throws a sentence for the operator.
    package init(path: String, purpose: String) throws(AgentError) {
        try Self.makeDirectory(path, purpose: purpose)
        let file = path + "/\(purpose).lock"
        var descriptor = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        // A lock that exists can be held on a file system that cannot be written.
        if descriptor < 0, errno == EROFS || errno == ENOSPC {
            let error = errno
            descriptor = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
            if descriptor < 0 { errno = error }
        }
        guard descriptor >= 0 else { throw Self.failure("open \(file)", errno) }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            let error = errno
            close(descriptor)
            guard error == EWOULDBLOCK else { throw Self.failure("lock \(file)", error) }
            throw AgentError(
                .agentStopping, "Couldn't use the \(purpose) directory \(path): another agent holds it",
                subject: path)
        }
        self.path = path
        self.descriptor = descriptor
    }

    deinit { release() }

    /// Lets other agents have the directory.
    package func release() {
        guard !isReleased.exchange(true, ordering: .acquiringAndReleasing) else { return }
        // Closing alone would not do while a child that is just being made has a copy of the descriptor.
        flock(descriptor, LOCK_UN)
        close(descriptor)
    }

    private static func makeDirectory(_ path: String, purpose: String) throws(AgentError) {
        guard path.isAbsolutePath, !path.utf8.contains(0) else {
            throw AgentError(
                .pathInvalid, "Couldn't use the \(purpose) directory '\(path)': give an absolute path",
                subject: path)
        }
        var made = ""
        for part in path.utf8.split(separator: UInt8(ascii: "/")) {
            made += "/" + String(Substring(part))
            guard mkdir(made, 0o700) == 0 || errno == EEXIST || errno == EROFS || errno == EACCES else {
                throw failure("make the \(purpose) directory \(made)", errno)
            }
        }
        do throws(BlockError) { _ = try Directory(path) } catch {
            throw AgentError(
                .pathInvalid, "Couldn't use the \(purpose) directory \(path): \(error.message)", subject: path
            )
        }
    }

    private static func failure(_ what: String, _ error: Int32) -> AgentError {
        AgentError(
            error == EROFS || error == ENOSPC ? .noSpace : .ioError,
            "Couldn't \(what): \(BlockError.describe(errno: error))")
    }
}
