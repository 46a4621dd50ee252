internal import Glibc
internal import NIOCore
internal import NIOPosix

/// Numbers of failed system calls that mean something to us.
enum ErrorNumber {
    static let permissionDenied = EACCES
    static let notPermitted = EPERM
    static let noSuchFile = ENOENT
    static let connectionRefused = ECONNREFUSED
}

extension Error {
    /// The number of the failed system call, if the error is about one.
    var errorNumber: Int32? {
        if let error = self as? IOError { return error.errnoCode }
        if let error = self as? NIOConnectionError {
            return error.connectionErrors.lazy.compactMap { $0.error.errorNumber }.first
        }
        return nil
    }

    /// What went wrong, as the end of a sentence.
    var sentence: String {
        if let number = errorNumber {
            var text = [CChar](repeating: 0, count: 256)
            guard strerror_r(number, &text, text.count) == 0 else { return "error \(number)" }
            return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        switch self {
        case let error as NIOConnectionError:
            return error.dnsAError == nil ? "\(error)" : "unknown host \(error.host)"
        case let error as ChannelError:
            switch error {
            case .connectTimeout: return "it did not answer in time"
            case .eof, .inputClosed, .outputClosed, .ioOnClosedChannel, .alreadyClosed: return "it was closed"
            default: return "\(error)"
            }
        default: return "\(self)"
        }
    }
}
