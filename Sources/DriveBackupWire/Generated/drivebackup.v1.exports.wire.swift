// swift-format-ignore-file
// Generated from proto/drivebackup/v1/exports.proto by tools/generate. Never edited by hand.

internal import CWire

/// A device under the name by which NBD clients ask for it.
public struct Export: WireMessage {
    /// Unique in this agent. The first export on an address also answers to the empty name.
    public var name: String = ""
    /// The drive that is served.
    public var drive: String = ""
    /// Where: "unix:PATH" or "tcp://HOST:PORT", with the port that the system chose where 0 was asked for.
    public var address: String = ""
    /// Requests that would change something are refused.
    public var readOnly: Bool = false
    /// The job whose point in time is served; empty where it is the drive as it is.
    public var snapshotOf: String = ""
    /// How many NBD clients have it open.
    public var clients: UInt32 = 0
    /// Given on the agent's command line; such an export cannot be removed.
    public var fromCommandLine: Bool = false
    /// Why it is not served; empty when it is.
    public var problem: String = ""

    public init() {}

    public init(
        name: String = "",
        drive: String = "",
        address: String = "",
        readOnly: Bool = false,
        snapshotOf: String = "",
        clients: UInt32 = 0,
        fromCommandLine: Bool = false,
        problem: String = ""
    ) {
        self.name = name
        self.drive = drive
        self.address = address
        self.readOnly = readOnly
        self.snapshotOf = snapshotOf
        self.clients = clients
        self.fromCommandLine = fromCommandLine
        self.problem = problem
    }

    public static let messageName = "drivebackup.v1.Export"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_export())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "name", &name)
        coder.string(2, "drive", &drive)
        coder.string(3, "address", &address)
        coder.bool(4, "read_only", &readOnly)
        coder.string(5, "snapshot_of", &snapshotOf)
        coder.uint32(6, "clients", &clients)
        coder.bool(7, "from_command_line", &fromCommandLine)
        coder.string(8, "problem", &problem)
    }
}

/// `drivebackup.v1.ListExportsRequest`.
public struct ListExportsRequest: WireMessage {
    public init() {}

    public static let messageName = "drivebackup.v1.ListExportsRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_list_exports_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
    }
}

/// `drivebackup.v1.ListExportsResponse`.
public struct ListExportsResponse: WireMessage {
    public var exports: [Export] = []

    public init() {}

    public init(
        exports: [Export] = []
    ) {
        self.exports = exports
    }

    public static let messageName = "drivebackup.v1.ListExportsResponse"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_list_exports_response())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.messages(1, "exports", &exports)
    }
}

/// Serve a drive, or with `snapshot_of` the point in time of a job.
public struct AddExportRequest: WireMessage {
    /// The drive's name. With `snapshot_of` it may be empty, or is that of the job's drive.
    public var drive: String = ""
    /// "unix:PATH" with an absolute path on the agent's host, or "tcp://HOST:PORT" with a loopback address;
    /// port 0 lets the system choose. Several exports may be at one address.
    public var address: String = ""
    /// The export's name, at most 255 bytes without control characters. Empty for the drive's, and with
    /// `snapshot_of` for the job's with "-snapshot" behind it.
    public var name: String = ""
    /// Refuse requests that would change something. A drive that is read-only, and a point in time, are in
    /// any case.
    public var readOnly: Bool = false
    /// The job, of this agent and past its start, whose point in time is served. It ends with the job.
    public var snapshotOf: String = ""

    public init() {}

    public init(
        drive: String = "",
        address: String = "",
        name: String = "",
        readOnly: Bool = false,
        snapshotOf: String = ""
    ) {
        self.drive = drive
        self.address = address
        self.name = name
        self.readOnly = readOnly
        self.snapshotOf = snapshotOf
    }

    public static let messageName = "drivebackup.v1.AddExportRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_add_export_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "drive", &drive)
        coder.string(2, "address", &address)
        coder.string(3, "name", &name)
        coder.bool(4, "read_only", &readOnly)
        coder.string(5, "snapshot_of", &snapshotOf)
    }
}

/// `drivebackup.v1.RemoveExportRequest`.
public struct RemoveExportRequest: WireMessage {
    /// The export's name.
    public var name: String = ""

    public init() {}

    public init(
        name: String = ""
    ) {
        self.name = name
    }

    public static let messageName = "drivebackup.v1.RemoveExportRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_remove_export_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "name", &name)
    }
}

/// `drivebackup.v1.RemoveExportResponse`.
public struct RemoveExportResponse: WireMessage {
    public init() {}

    public static let messageName = "drivebackup.v1.RemoveExportResponse"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_remove_export_response())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
    }
}

/// The methods of `drivebackup.v1.Exports`.
public enum ExportsMethods {
    /// All exports, by name.
    public static let list = RPCMethod<ListExportsRequest, ListExportsResponse>(
        "drivebackup.v1.Exports/List", isServerStreaming: false)
    /// Serves a drive, and does so again after every restart; or serves the point in time of a running job
    /// until the job ends.
    public static let add = RPCMethod<AddExportRequest, Export>(
        "drivebackup.v1.Exports/Add", isServerStreaming: false)
    /// Serves it no more: running requests end, then its clients are disconnected.
    public static let remove = RPCMethod<RemoveExportRequest, RemoveExportResponse>(
        "drivebackup.v1.Exports/Remove", isServerStreaming: false)
}
