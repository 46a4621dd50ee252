// swift-format-ignore-file
// Generated from proto/drivebackup/v1/errors.proto by tools/generate. Never edited by hand.

internal import CWire

/// gRPC's status codes.
public struct StatusCode: WireEnum {
    public let rawValue: Int32

    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// Success. (Also what an absent code means.)
    public static let ok = Self(rawValue: 0)
    public static let cancelled = Self(rawValue: 1)
    public static let unknown = Self(rawValue: 2)
    public static let invalidArgument = Self(rawValue: 3)
    public static let deadlineExceeded = Self(rawValue: 4)
    public static let notFound = Self(rawValue: 5)
    public static let alreadyExists = Self(rawValue: 6)
    public static let permissionDenied = Self(rawValue: 7)
    public static let resourceExhausted = Self(rawValue: 8)
    public static let failedPrecondition = Self(rawValue: 9)
    public static let aborted = Self(rawValue: 10)
    public static let outOfRange = Self(rawValue: 11)
    public static let unimplemented = Self(rawValue: 12)
    public static let `internal` = Self(rawValue: 13)
    public static let unavailable = Self(rawValue: 14)
    public static let dataLoss = Self(rawValue: 15)
    public static let unauthenticated = Self(rawValue: 16)

    public static let allCases: [Self] = [
        .ok,
        .cancelled,
        .unknown,
        .invalidArgument,
        .deadlineExceeded,
        .notFound,
        .alreadyExists,
        .permissionDenied,
        .resourceExhausted,
        .failedPrecondition,
        .aborted,
        .outOfRange,
        .unimplemented,
        .`internal`,
        .unavailable,
        .dataLoss,
        .unauthenticated,
    ]

    public var knownName: String? {
        switch rawValue {
        case 0: "ok"
        case 1: "cancelled"
        case 2: "unknown"
        case 3: "invalid_argument"
        case 4: "deadline_exceeded"
        case 5: "not_found"
        case 6: "already_exists"
        case 7: "permission_denied"
        case 8: "resource_exhausted"
        case 9: "failed_precondition"
        case 10: "aborted"
        case 11: "out_of_range"
        case 12: "unimplemented"
        case 13: "internal"
        case 14: "unavailable"
        case 15: "data_loss"
        case 16: "unauthenticated"
        default: nil
        }
    }
}

/// The detail of every status that is not OK and that the agent itself made.
public struct ErrorInfo: WireMessage {
    /// A stable word for the cause, for example "TARGET_SIZE_MISMATCH". docs/protocol.md lists them.
    public var reason: String = ""
    /// The drive, job, file or field it is about.
    public var subject: String = ""

    public init() {}

    public init(
        reason: String = "",
        subject: String = ""
    ) {
        self.reason = reason
        self.subject = subject
    }

    public static let messageName = "drivebackup.v1.ErrorInfo"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_error_info())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "reason", &reason)
        coder.string(2, "subject", &subject)
    }
}
