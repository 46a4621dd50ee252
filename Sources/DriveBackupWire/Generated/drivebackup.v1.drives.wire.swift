// swift-format-ignore-file
// Generated from proto/drivebackup/v1/drives.proto by tools/generate. Never edited by hand.

internal import CWire

/// A named virtual disk.
public struct Drive: WireMessage {
    /// Its name: a letter, then letters, digits, '-', '.', '_'.
    public var id: String = ""
    /// The image's absolute path.
    public var file: String = ""
    /// "raw" or "qcow2".
    public var format: String = ""
    /// The size of the virtual disk in bytes.
    public var size: Int64 = 0
    /// Nobody writes to it.
    public var readOnly: Bool = false
    /// The image's backing files, nearest first.
    public var backing: [BackingFile] = []
    /// The image's cluster size in bytes; 0 for raw.
    public var clusterSize: Int64 = 0
    /// The job that uses the drive; empty when none does.
    public var jobID: String = ""
    /// Given on the agent's command line; such a drive cannot be removed.
    public var fromCommandLine: Bool = false
    /// Why the drive could not be opened at the agent's start; empty when it is open.
    public var problem: String = ""
    /// The names of its exports, points in time included, in order.
    public var exports: [String] = []
    /// How its files are used: "writeback", through the page cache, or "none", past it.
    public var cache: String = ""

    public init() {}

    public init(
        id: String = "",
        file: String = "",
        format: String = "",
        size: Int64 = 0,
        readOnly: Bool = false,
        backing: [BackingFile] = [],
        clusterSize: Int64 = 0,
        jobID: String = "",
        fromCommandLine: Bool = false,
        problem: String = "",
        exports: [String] = [],
        cache: String = ""
    ) {
        self.id = id
        self.file = file
        self.format = format
        self.size = size
        self.readOnly = readOnly
        self.backing = backing
        self.clusterSize = clusterSize
        self.jobID = jobID
        self.fromCommandLine = fromCommandLine
        self.problem = problem
        self.exports = exports
        self.cache = cache
    }

    public static let messageName = "drivebackup.v1.Drive"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_drive())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "id", &id)
        coder.string(2, "file", &file)
        coder.string(3, "format", &format)
        coder.int64(4, "size", &size)
        coder.bool(5, "read_only", &readOnly)
        coder.messages(6, "backing", &backing)
        coder.int64(7, "cluster_size", &clusterSize)
        coder.string(8, "job_id", &jobID)
        coder.bool(9, "from_command_line", &fromCommandLine)
        coder.string(10, "problem", &problem)
        coder.strings(11, "exports", &exports)
        coder.string(12, "cache", &cache)
    }
}

/// One file of the chain below an image.
public struct BackingFile: WireMessage {
    /// The absolute path.
    public var file: String = ""
    /// "raw" or "qcow2".
    public var format: String = ""
    /// The size of its virtual disk in bytes.
    public var size: Int64 = 0

    public init() {}

    public init(
        file: String = "",
        format: String = "",
        size: Int64 = 0
    ) {
        self.file = file
        self.format = format
        self.size = size
    }

    public static let messageName = "drivebackup.v1.BackingFile"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_backing_file())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "file", &file)
        coder.string(2, "format", &format)
        coder.int64(3, "size", &size)
    }
}

/// `drivebackup.v1.ListDrivesRequest`.
public struct ListDrivesRequest: WireMessage {
    public init() {}

    public static let messageName = "drivebackup.v1.ListDrivesRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_list_drives_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
    }
}

/// `drivebackup.v1.ListDrivesResponse`.
public struct ListDrivesResponse: WireMessage {
    public var drives: [Drive] = []

    public init() {}

    public init(
        drives: [Drive] = []
    ) {
        self.drives = drives
    }

    public static let messageName = "drivebackup.v1.ListDrivesResponse"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_list_drives_response())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.messages(1, "drives", &drives)
    }
}

/// `drivebackup.v1.GetDriveRequest`.
public struct GetDriveRequest: WireMessage {
    /// The drive's name.
    public var id: String = ""

    public init() {}

    public init(
        id: String = ""
    ) {
        self.id = id
    }

    public static let messageName = "drivebackup.v1.GetDriveRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_get_drive_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "id", &id)
    }
}

/// `drivebackup.v1.AddDriveRequest`.
public struct AddDriveRequest: WireMessage {
    /// The new drive's name: a letter, then letters, digits, '-', '.', '_'; at most 255 bytes.
    public var id: String = ""
    /// The image's absolute path on the agent's host.
    public var file: String = ""
    /// "raw" or "qcow2"; empty to find out once.
    public var format: String = ""
    /// Open it for reading only.
    public var readOnly: Bool = false
    /// "writeback": its files are used through the page cache (the default, when empty); "none": past it
    /// (O_DIRECT).
    public var cache: String = ""

    public init() {}

    public init(
        id: String = "",
        file: String = "",
        format: String = "",
        readOnly: Bool = false,
        cache: String = ""
    ) {
        self.id = id
        self.file = file
        self.format = format
        self.readOnly = readOnly
        self.cache = cache
    }

    public static let messageName = "drivebackup.v1.AddDriveRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_add_drive_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "id", &id)
        coder.string(2, "file", &file)
        coder.string(3, "format", &format)
        coder.bool(4, "read_only", &readOnly)
        coder.string(5, "cache", &cache)
    }
}

/// `drivebackup.v1.RemoveDriveRequest`.
public struct RemoveDriveRequest: WireMessage {
    /// The drive's name.
    public var id: String = ""

    public init() {}

    public init(
        id: String = ""
    ) {
        self.id = id
    }

    public static let messageName = "drivebackup.v1.RemoveDriveRequest"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_remove_drive_request())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
        coder.string(1, "id", &id)
    }
}

/// `drivebackup.v1.RemoveDriveResponse`.
public struct RemoveDriveResponse: WireMessage {
    public init() {}

    public static let messageName = "drivebackup.v1.RemoveDriveResponse"

    public static var descriptor: MessageDescriptor {
        MessageDescriptor(cwire_drivebackup_v1_remove_drive_response())
    }

    public mutating func fields<Coder: FieldCoder>(_ coder: inout Coder) {
    }
}

/// The methods of `drivebackup.v1.Drives`.
public enum DrivesMethods {
    /// All drives, by id.
    public static let list = RPCMethod<ListDrivesRequest, ListDrivesResponse>(
        "drivebackup.v1.Drives/List", isServerStreaming: false)
    /// One drive.
    public static let get = RPCMethod<GetDriveRequest, Drive>(
        "drivebackup.v1.Drives/Get", isServerStreaming: false)
    /// Opens an image as a drive and keeps it over restarts.
    public static let add = RPCMethod<AddDriveRequest, Drive>(
        "drivebackup.v1.Drives/Add", isServerStreaming: false)
    /// Closes a drive and forgets it. Refused while a job uses it or it has an export.
    public static let remove = RPCMethod<RemoveDriveRequest, RemoveDriveResponse>(
        "drivebackup.v1.Drives/Remove", isServerStreaming: false)
}
