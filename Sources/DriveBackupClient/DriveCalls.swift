public import DriveBackupRPC
public import DriveBackupWire

/// The named disks that the agent has open.
public struct DriveCalls: Sendable {
    let client: DriveBackupClient

    /// All drives, by id.
    public func list() async throws(RPCStatus) -> [Drive] {
        try await client.call(DrivesMethods.list, ListDrivesRequest()).drives
    }

    /// One drive. Throws `notFound` if there is none of that id.
    public func get(_ id: String) async throws(RPCStatus) -> Drive {
        var request = GetDriveRequest()
        request.id = id
        return try await client.call(DrivesMethods.get, request)
    }

    /// Opens an image as a drive; the agent keeps it over its restarts.
    ///
    /// - Parameters:
    ///   - id: a letter, then letters, digits, `-`, `.`, `_`; at most 255 bytes.
    ///   - file: the image's absolute path on the agent's host.
    ///   - format: `raw` or `qcow2`; empty to find out once. A guest that writes a raw disk can make it look like
    ///     another format, so say it where it is known.
    ///   - readOnly: nobody writes to it.
    ///   - cache: `none` to read and write its files past the host's page cache (O_DIRECT); else `writeback`, or empty.
    /// - Throws: `alreadyExists` if the id is taken, `failedPrecondition` if the image is in use, not valid or not to be used so,
    ///   `permissionDenied` if it is outside the allowed directories.
    public func add(
        _ id: String, file: String, format: String = "", readOnly: Bool = false, cache: String = ""
    ) async throws(RPCStatus) -> Drive {
        var request = AddDriveRequest()
        request.id = id
        request.file = file
        request.format = format
        request.readOnly = readOnly
        request.cache = cache
        return try await client.call(DrivesMethods.add, request)
    }

    /// Closes a drive and forgets it. Throws `failedPrecondition` while a job uses it or it has an export.
    public func remove(_ id: String) async throws(RPCStatus) {
        var request = RemoveDriveRequest()
        request.id = id
        _ = try await client.call(DrivesMethods.remove, request)
    }
}
