// swift-format-ignore-file
// Generated from proto/drivebackup/v1/agent.proto by tools/generate. Never edited by hand.

internal import CWire

/// `drivebackup.v1.GetInfoRequest`.
public struct GetInfoRequest: WireMessage {
    public init() {}

    public static let messageName = "drivebackup.v1.GetInfoRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_get_info_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
    }
}

/// Who the agent is and how it does.
public struct AgentInfo: WireMessage {
    /// The version of the agent's software.
    public var version: String = ""
    /// The version of the wire protocol.
    public var protocolVersion: UInt32 = 0
    /// The process id.
    public var pid: Int64 = 0
    /// When the agent started, in nanoseconds since 1970-01-01 UTC.
    public var startedAt: Int64 = 0
    /// How many drives are open.
    public var drives: UInt32 = 0
    /// How many jobs have not ended.
    public var jobs: UInt32 = 0
    /// "ring" or "threads": how the agent does its file I/O.
    public var engine: String = ""
    /// The highest sequence number of an event so far.
    public var lastSequence: UInt64 = 0
    /// The addresses the agent listens on.
    public var addresses: [String] = []
    /// The directories that targets and drives may be in; empty when none was given.
    public var allowedDirectories: [String] = []
    /// What is wrong with the agent itself (its state cannot be kept, for instance), a sentence each.
    public var problems: [String] = []

    public init() {}

    public init(
        version: String = "",
        protocolVersion: UInt32 = 0,
        pid: Int64 = 0,
        startedAt: Int64 = 0,
        drives: UInt32 = 0,
        jobs: UInt32 = 0,
        engine: String = "",
        lastSequence: UInt64 = 0,
        addresses: [String] = [],
        allowedDirectories: [String] = [],
        problems: [String] = []
    ) {
        self.version = version
        self.protocolVersion = protocolVersion
        self.pid = pid
        self.startedAt = startedAt
        self.drives = drives
        self.jobs = jobs
        self.engine = engine
        self.lastSequence = lastSequence
        self.addresses = addresses
        self.allowedDirectories = allowedDirectories
        self.problems = problems
    }

    public static let messageName = "drivebackup.v1.AgentInfo"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_agent_info())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "version", &version)
        coder.uint32(2, "protocol_version", &protocolVersion)
        coder.int64(3, "pid", &pid)
        coder.int64(4, "started_at", &startedAt)
        coder.uint32(5, "drives", &drives)
        coder.uint32(6, "jobs", &jobs)
        coder.string(7, "engine", &engine)
        coder.uint64(8, "last_sequence", &lastSequence)
        coder.strings(9, "addresses", &addresses)
        coder.strings(10, "allowed_directories", &allowedDirectories)
        coder.strings(11, "problems", &problems)
    }
}

/// `drivebackup.v1.WatchEventsRequest`.
public struct WatchEventsRequest: WireMessage {
    /// Only events with a higher sequence number are sent; 0 for all that the agent still has.
    public var afterSequence: UInt64 = 0
    /// End the stream when all events so far have been sent.
    public var noFollow: Bool = false

    public init() {}

    public init(
        afterSequence: UInt64 = 0,
        noFollow: Bool = false
    ) {
        self.afterSequence = afterSequence
        self.noFollow = noFollow
    }

    public static let messageName = "drivebackup.v1.WatchEventsRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_watch_events_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.uint64(1, "after_sequence", &afterSequence)
        coder.bool(2, "no_follow", &noFollow)
    }
}

/// The methods of `drivebackup.v1.Agent`.
public enum AgentMethods {
    /// Who the agent is and how it does.
    public static let getInfo = RPCMethod<GetInfoRequest, AgentInfo>(
        "drivebackup.v1.Agent/GetInfo", isServerStreaming: false)
    /// The events of all jobs, oldest first, from a point in the past and then as they happen, without end.
    public static let watchEvents = RPCMethod<WatchEventsRequest, JobEvent>(
        "drivebackup.v1.Agent/WatchEvents", isServerStreaming: true)
}
