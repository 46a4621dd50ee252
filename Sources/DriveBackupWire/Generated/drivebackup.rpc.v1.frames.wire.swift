// swift-format-ignore-file
// Generated from proto/drivebackup/rpc/v1/frames.proto by tools/generate. Never edited by hand.

internal import CWire

extension Frames {

    /// The payload of HELLO: the first frame each way. Each side says what it accepts.
    public struct Hello: WireMessage {
        /// The version of this protocol: 1.
        public var protocolVersion: UInt32 = 0
        /// The largest payload of a frame that the sender of this message accepts, in bytes; 0 means 4194304,
        /// the most there is.
        public var maxPayload: UInt32 = 0
        /// How many bytes of MESSAGE payload the other side may send on a new stream before it needs CREDIT.
        public var initialCredit: UInt64 = 0
        /// Names of optional abilities; unknown ones are ignored. None is defined yet.
        public var features: [String] = []
        /// Name and version of the sender's software, for logs.
        public var software: String = ""

        public init() {}

        public init(
            protocolVersion: UInt32 = 0,
            maxPayload: UInt32 = 0,
            initialCredit: UInt64 = 0,
            features: [String] = [],
            software: String = ""
        ) {
            self.protocolVersion = protocolVersion
            self.maxPayload = maxPayload
            self.initialCredit = initialCredit
            self.features = features
            self.software = software
        }

        public static let messageName = "drivebackup.rpc.v1.Hello"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_hello())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.uint32(1, "protocol_version", &protocolVersion)
            coder.uint32(2, "max_payload", &maxPayload)
            coder.uint64(3, "initial_credit", &initialCredit)
            coder.strings(4, "features", &features)
            coder.string(5, "software", &software)
        }
    }

    /// The payload of CALL: opens a stream and says what is called.
    public struct Call: WireMessage {
        /// What is called, for example "drivebackup.v1.Backups/Start".
        public var method: String = ""
        /// How long the caller waits, in nanoseconds from the arrival of this frame; 0 means without end.
        public var timeoutNs: UInt64 = 0
        /// Facts about the call that are not part of the request.
        public var metadata: [Frames.Metadata] = []
        /// The first request, encoded. With the flag END it is the only one.
        public var message: [UInt8] = []

        public init() {}

        public init(
            method: String = "",
            timeoutNs: UInt64 = 0,
            metadata: [Frames.Metadata] = [],
            message: [UInt8] = []
        ) {
            self.method = method
            self.timeoutNs = timeoutNs
            self.metadata = metadata
            self.message = message
        }

        public static let messageName = "drivebackup.rpc.v1.Call"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_call())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.string(1, "method", &method)
            coder.uint64(2, "timeout_ns", &timeoutNs)
            coder.messages(3, "metadata", &metadata)
            coder.bytes(4, "message", &message)
        }
    }

    /// The payload of STATUS: ends a call.
    public struct Status: WireMessage {
        /// A gRPC status code; 0 is OK.
        public var code: UInt32 = 0
        /// What failed, on what, why, and what to do: a sentence for people. Empty for OK.
        public var message: String = ""
        /// The same for programs, for example a drivebackup.v1.ErrorInfo.
        public var details: [Frames.Detail] = []
        /// Facts about the end of the call.
        public var metadata: [Frames.Metadata] = []

        public init() {}

        public init(
            code: UInt32 = 0,
            message: String = "",
            details: [Frames.Detail] = [],
            metadata: [Frames.Metadata] = []
        ) {
            self.code = code
            self.message = message
            self.details = details
            self.metadata = metadata
        }

        public static let messageName = "drivebackup.rpc.v1.Status"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_status())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.uint32(1, "code", &code)
            coder.string(2, "message", &message)
            coder.messages(3, "details", &details)
            coder.messages(4, "metadata", &metadata)
        }
    }

    /// One fact about a call.
    public struct Metadata: WireMessage {
        /// Lower-case letters, digits, '-', '_' and '.'.
        public var key: String = ""
        /// Any bytes.
        public var value: [UInt8] = []

        public init() {}

        public init(
            key: String = "",
            value: [UInt8] = []
        ) {
            self.key = key
            self.value = value
        }

        public static let messageName = "drivebackup.rpc.v1.Metadata"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_metadata())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.string(1, "key", &key)
            coder.bytes(2, "value", &value)
        }
    }

    /// A message that explains a status.
    public struct Detail: WireMessage {
        /// The full name of the message, for example "drivebackup.v1.ErrorInfo".
        public var type: String = ""
        /// The message, encoded.
        public var value: [UInt8] = []

        public init() {}

        public init(
            type: String = "",
            value: [UInt8] = []
        ) {
            self.type = type
            self.value = value
        }

        public static let messageName = "drivebackup.rpc.v1.Detail"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_detail())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.string(1, "type", &type)
            coder.bytes(2, "value", &value)
        }
    }

    /// The payload of CANCEL: the caller no longer wants the answer.
    public struct Cancel: WireMessage {
        /// Why, for logs.
        public var reason: String = ""

        public init() {}

        public init(
            reason: String = ""
        ) {
            self.reason = reason
        }

        public static let messageName = "drivebackup.rpc.v1.Cancel"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_cancel())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.string(1, "reason", &reason)
        }
    }

    /// The payload of CREDIT: permits more MESSAGE payload on a stream.
    public struct Credit: WireMessage {
        /// How many bytes more.
        public var bytes: UInt64 = 0

        public init() {}

        public init(
            bytes: UInt64 = 0
        ) {
            self.bytes = bytes
        }

        public static let messageName = "drivebackup.rpc.v1.Credit"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_credit())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.uint64(1, "bytes", &bytes)
        }
    }

    /// The payload of PING: asks whether the other side is there.
    public struct Ping: WireMessage {
        /// Comes back in the PONG.
        public var token: UInt64 = 0

        public init() {}

        public init(
            token: UInt64 = 0
        ) {
            self.token = token
        }

        public static let messageName = "drivebackup.rpc.v1.Ping"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_ping())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.fixed64(1, "token", &token)
        }
    }

    /// The payload of PONG: answers a PING.
    public struct Pong: WireMessage {
        /// The token of the PING.
        public var token: UInt64 = 0

        public init() {}

        public init(
            token: UInt64 = 0
        ) {
            self.token = token
        }

        public static let messageName = "drivebackup.rpc.v1.Pong"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_pong())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.fixed64(1, "token", &token)
        }
    }

    /// The payload of GOAWAY: the sender takes no new calls on this connection.
    public struct GoAway: WireMessage {
        /// The highest stream that the sender has taken; later ones were not looked at and can be tried again
        /// elsewhere.
        public var lastStream: UInt32 = 0
        /// Why.
        public var status: Frames.Status? = nil

        public init() {}

        public init(
            lastStream: UInt32 = 0,
            status: Frames.Status? = nil
        ) {
            self.lastStream = lastStream
            self.status = status
        }

        public static let messageName = "drivebackup.rpc.v1.GoAway"

        public static var descriptor: MessageDescriptor {
            MessageDescriptor(cwire_drivebackup_rpc_v1_go_away())
        }

        public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
            coder.uint32(1, "last_stream", &lastStream)
            coder.message(2, "status", &status)
        }
    }
}
