internal import BlockIO
internal import Glibc

// Drives must come up whatever has become of the state directory: a guest does not care for history. So a damaged database
// is set aside and a new one is made, and one that cannot be written is read. Both are problems that are told; neither is
// an end.

extension StateStore {
    /// What opening the state has come to.
    struct Opened: Sendable {
        var store: StateStore
        /// What the operator has to know; nil: all is well.
        var problem: String?
        /// The numbers that were given out are not known.
        var numbersAreLost = false
    }

    /// Opens the database, or what there is of it. Blocks. Throws only when it belongs to a newer version.
    ///
    /// - Parameter scratch: a directory for a copy of a database that cannot be written.
    static func openWhatThereIs(directory: String, scratch: String) throws(AgentError) -> Opened {
        let path = directory + "/" + fileName
        do throws(AgentError) {
            return Opened(store: try open(path: path))
        } catch {
            switch error.reason {
            case .stateSuperseded: throw error
            case .stateDamaged: return setAside(path, error, scratch: scratch)
            default: return openUnwritable(path, error, scratch: scratch)
            }
        }
    }

    private static func setAside(_ path: String, _ error: AgentError, scratch: String) -> Opened {
        let name = "\(path).damaged-\(timeStamp())"
        for suffix in ["", "-wal", "-shm"] where rename(path + suffix, name + suffix) != 0 && errno != ENOENT
        {
            let why = AgentError(
                .ioError,
                "\(error.message), and it couldn't be set aside: \(BlockError.describe(errno: errno))")
            return openUnwritable(path, why, scratch: scratch)
        }
        do throws(AgentError) {
            return Opened(
                store: try open(path: path),
                problem: """
                    \(error.message). It is kept as \(name), and an empty one was made: drives and exports that clients \
                    had added, and the history, are lost to the agent; add them again
                    """, numbersAreLost: true)
        } catch {
            return openUnwritable(path, error, scratch: scratch)
        }
    }

    /// Reads a copy of a database that cannot be written, or has none.
    private static func openUnwritable(_ path: String, _ error: AgentError, scratch: String) -> Opened {
        let refusal = AgentError(
            error.reason,
            "Nothing can be kept in the agent's state: \(error.message) (mend that and start the agent again)",
            subject: path)
        let told =
            "\(error.message). Drives, exports and jobs are not kept, and clients can add none that are kept"
        let copy = "\(scratch)/state-copy.sqlite"
        defer { for suffix in ["", "-wal", "-shm"] { unlink(copy + suffix) } }
        for suffix in ["", "-wal", "-shm"] { unlink(copy + suffix) }
        if error.reason != .stateDamaged, ["", "-wal"].allSatisfy({ duplicate(path + $0, copy + $0) }),
            access(copy, F_OK) == 0,
            // Damaged, too: there is nothing to read.
            let store = try? open(path: copy, refusal: refusal)
        {
            return Opened(store: store, problem: told)
        }
        do throws(AgentError) {
            return Opened(
                store: try open(path: ":memory:", refusal: refusal),
                problem: told + "; what was kept cannot be read either", numbersAreLost: true)
        } catch {
            preconditionFailure("a database in memory can be made: \(error.message)")
        }
    }

    /// Copies a file; true when it does not exist, too.
    private static func duplicate(_ path: String, _ copy: String) -> Bool {
        let source = Glibc.open(path, O_RDONLY | O_CLOEXEC)
        guard source >= 0 else { return errno == ENOENT }
        defer { Glibc.close(source) }
        let target = Glibc.open(copy, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard target >= 0 else { return false }
        defer { Glibc.close(target) }
        var buffer = [UInt8](repeating: 0, count: 1 << 18)
        while true {
            let count = buffer.withUnsafeMutableBytes { Glibc.read(source, $0.baseAddress, $0.count) }
            guard count > 0 else { return count == 0 }
            guard buffer.withUnsafeBytes({ Glibc.write(target, $0.baseAddress, count) }) == count else {
                return false
            }
        }
    }

    /// `20260131T235959Z`.
    private static func timeStamp() -> String {
        var seconds = time(nil)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        var text = [CChar](repeating: 0, count: 32)
        strftime(&text, text.count, "%Y%m%dT%H%M%SZ", &parts)
        return text.withUnsafeBufferPointer { $0.baseAddress.map { String(cString: $0) } ?? "" }
    }
}
