public import DriveBackupWire

/// How a call ended: gRPC's status codes.
public enum RPCCode: Int, Sendable, Hashable, CaseIterable {
    case ok = 0
    case cancelled = 1
    case unknown = 2
    case invalidArgument = 3
    case deadlineExceeded = 4
    case notFound = 5
    case alreadyExists = 6
    case permissionDenied = 7
    case resourceExhausted = 8
    case failedPrecondition = 9
    case aborted = 10
    case outOfRange = 11
    case unimplemented = 12
    case `internal` = 13
    case unavailable = 14
    case dataLoss = 15
    case unauthenticated = 16

    /// The name in gRPC's documents: `FAILED_PRECONDITION`.
    public var name: String {
        switch self {
        case .ok: "OK"
        case .cancelled: "CANCELLED"
        case .unknown: "UNKNOWN"
        case .invalidArgument: "INVALID_ARGUMENT"
        case .deadlineExceeded: "DEADLINE_EXCEEDED"
        case .notFound: "NOT_FOUND"
        case .alreadyExists: "ALREADY_EXISTS"
        case .permissionDenied: "PERMISSION_DENIED"
        case .resourceExhausted: "RESOURCE_EXHAUSTED"
        case .failedPrecondition: "FAILED_PRECONDITION"
        case .aborted: "ABORTED"
        case .outOfRange: "OUT_OF_RANGE"
        case .unimplemented: "UNIMPLEMENTED"
        case .internal: "INTERNAL"
        case .unavailable: "UNAVAILABLE"
        case .dataLoss: "DATA_LOSS"
        case .unauthenticated: "UNAUTHENTICATED"
        }
    }
}

/// One fact about a call that is not part of its request or answer.
public struct RPCMetadata: Sendable, Hashable {
    /// Lower-case letters, digits, `-`, `_` and `.`.
    public var key: String
    public var value: [UInt8]

    public init(key: String, value: [UInt8]) {
        self.key = key
        self.value = value
    }

    public init(key: String, value: String) {
        self.init(key: key, value: Array(value.utf8))
    }

    /// Whether `key` has at least one character and only those that the protocol allows.
    static func isValid(key: String) -> Bool {
        !key.isEmpty && key.utf8.count <= 255
            && key.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
                    UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: "."):
                    true
                default: false
                }
            }
    }
}

/// A message that explains a status.
public struct RPCDetail: Sendable, Hashable {
    /// The message's full name: `drivebackup.v1.ErrorInfo`.
    public var type: String
    /// The message, encoded.
    public var value: [UInt8]

    public init(type: String, value: [UInt8]) {
        self.type = type
        self.value = value
    }
}

/// How a call ended: a code, a sentence for people, and details for programs.
public struct RPCStatus: Error, Sendable, Hashable, CustomStringConvertible {
    public var code: RPCCode
    /// What failed, on what, why, and what to do; empty for `ok`.
    public var message: String
    public var details: [RPCDetail]
    public var metadata: [RPCMetadata]

    public init(
        _ code: RPCCode, _ message: String = "", details: [RPCDetail] = [], metadata: [RPCMetadata] = []
    ) {
        self.code = code
        self.message = message
        self.details = details
        self.metadata = metadata
    }

    /// A status with an `ErrorInfo` that tells programs the cause.
    ///
    /// - Parameters:
    ///   - reason: a stable word of docs/protocol.md, such as `TARGET_SIZE_MISMATCH`.
    ///   - subject: the drive, job, file or field it is about.
    public init(_ code: RPCCode, _ message: String, reason: String, subject: String = "") {
        self.init(code, message)
        var info = ErrorInfo()
        info.reason = reason
        // A NUL, which the wire refuses, can come with a file name of a hostile image.
        info.subject = subject.replacing("\0", with: "\u{FFFD}")
        // Encoding fails for strings with NUL only; a reason is one of our own constants.
        if let value = try? info.encode() {
            details = [RPCDetail(type: ErrorInfo.messageName, value: value)]
        }
    }

    public static let ok = RPCStatus(.ok)

    /// The first `ErrorInfo` among the details.
    public var errorInfo: ErrorInfo? {
        for detail in details where detail.type == ErrorInfo.messageName {
            // A detail that cannot be decoded explains nothing; the code and the message still do.
            if let info = try? ErrorInfo.decode(detail.value, limits: .response) { return info }
        }
        return nil
    }

    /// The stable word for the cause; empty if the status has none.
    public var reason: String { errorInfo?.reason ?? "" }

    /// What it is about; empty if the status does not say.
    public var subject: String { errorInfo?.subject ?? "" }

    public var description: String { message.isEmpty ? code.name : "\(code.name): \(message)" }
}
