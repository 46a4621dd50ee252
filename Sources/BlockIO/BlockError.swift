internal import Glibc

/// Why an operation on a file, image or device failed.
///
/// `message` is a whole sentence for people with the path, offset and number in it; `code` is what callers
/// decide by.
package struct BlockError: Error, Sendable, Hashable, Codable {
    package enum Code: String, Sendable, Hashable, CaseIterable, Codable {
        /// The path or a part of it does not exist.
        case notFound
        /// A file of that name exists already.
        case alreadyExists
        /// The kernel or a policy of ours does not allow it.
        case denied
        /// Another process or drive holds a conflicting lock on the file.
        case locked
        /// The file is used by us for something else.
        case busy
        /// No space, quota or file size left (ENOSPC, EDQUOT, EFBIG).
        case noSpace
        /// A flush or a write-back failed: what was written before may be lost, and nothing that is done now mends it.
        case dataLost
        /// The contents of an image break its format's rules.
        case corrupt
        /// The image or request is well-formed but needs something that we do not do.
        case unsupported
        /// The request does not fit the device: beyond its end, read-only, a wrong size.
        case invalid
        /// The device failed the operation.
        case inputOutput
        /// Who did the operations has ended, and does no more.
        case gone
        /// The operation was given up before it had an effect.
        case cancelled
    }

    package var code: Code
    package var message: String
    /// The error number of the system call that failed; 0 when none did.
    package var errno: Int32
    /// The bytes of the device that the failure is about, where it is about some.
    package var range: ByteRange?

    package init(_ code: Code, _ message: String, errno: Int32 = 0, range: ByteRange? = nil) {
        self.code = code
        self.message = message
        self.errno = errno
        self.range = range
    }

    /// The error of a system call: `what` failed ("Couldn't open /a/b"), because of `errno`.
    package init(_ what: String, errno: Int32, range: ByteRange? = nil) {
        self.init(
            Code(errno: errno), "\(what): \(Self.describe(errno: errno))", errno: errno, range: range)
    }

    /// There was no space, be it for the operation itself or for what was written before.
    package var isNoSpace: Bool {
        code == .noSpace || code == .dataLost && Code(errno: errno) == .noSpace
    }

    /// The system's words for an error number.
    package static func describe(errno: Int32) -> String {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { text in
            text.initialize(repeating: 0)
            guard let start = text.baseAddress, strerror_r(errno, start, text.count) == 0 else {
                return "error \(errno)"
            }
            return String(cString: start)
        }
    }
}

extension BlockError.Code {
    init(errno: Int32) {
        self =
            switch errno {
            case ENOENT, ENOTDIR: .notFound
            case EEXIST: .alreadyExists
            case EACCES, EPERM, EROFS: .denied
            case ENOSPC, EDQUOT, EFBIG: .noSpace
            case EAGAIN, EBUSY, ETXTBSY: .busy
            case EOPNOTSUPP, ENOSYS, EISDIR: .unsupported
            case EINVAL, ELOOP, ENAMETOOLONG: .invalid
            case ECANCELED: .cancelled
            default: .inputOutput
            }
    }
}

extension BlockError: CustomStringConvertible {
    package var description: String { message }
}
