/// Why the agent refused a request, or why a job failed: a stable reason for programs and a sentence for
/// people.
package struct AgentError: Error, Sendable, Hashable, Codable {
    package var reason: Reason
    /// A whole sentence with the name, path or number it is about.
    package var message: String
    /// The drive, job, file or field it is about; empty where there is none.
    package var subject: String

    package init(_ reason: Reason, _ message: String, subject: String = "") {
        self.reason = reason
        self.message = message
        self.subject = subject
    }

    /// The stable words of docs/protocol.md; a raw value never changes its meaning.
    package enum Reason: String, Sendable, Hashable, CaseIterable, Codable {
        case driveNotFound = "DRIVE_NOT_FOUND"
        case driveBusy = "DRIVE_BUSY"
        case driveExists = "DRIVE_EXISTS"
        case driveInvalid = "DRIVE_INVALID"
        case fileNotFound = "FILE_NOT_FOUND"
        case fileLocked = "FILE_LOCKED"
        case imageUnsupported = "IMAGE_UNSUPPORTED"
        case imageCorrupt = "IMAGE_CORRUPT"
        case pathNotAllowed = "PATH_NOT_ALLOWED"
        case pathInvalid = "PATH_INVALID"
        case accessDenied = "ACCESS_DENIED"
        case targetExists = "TARGET_EXISTS"
        case targetMissing = "TARGET_MISSING"
        case targetIsSource = "TARGET_IS_SOURCE"
        case targetBusy = "TARGET_BUSY"
        case targetLocked = "TARGET_LOCKED"
        case targetSizeMismatch = "TARGET_SIZE_MISMATCH"
        case targetPartialExists = "TARGET_PARTIAL_EXISTS"
        case targetFormatAmbiguous = "TARGET_FORMAT_AMBIGUOUS"
        case targetNotRegular = "TARGET_NOT_REGULAR"
        case backingUnsupported = "BACKING_UNSUPPORTED"
        case backingMismatch = "BACKING_MISMATCH"
        case exportNotFound = "EXPORT_NOT_FOUND"
        case exportExists = "EXPORT_EXISTS"
        case exportInvalid = "EXPORT_INVALID"
        case listenFailed = "LISTEN_FAILED"
        case stagingFull = "STAGING_FULL"
        case cbwTimeout = "CBW_TIMEOUT"
        case snapshotBroken = "SNAPSHOT_BROKEN"
        case snapshotFailed = "SNAPSHOT_FAILED"
        case manifestExists = "MANIFEST_EXISTS"
        case manifestMissing = "MANIFEST_MISSING"
        case manifestInvalid = "MANIFEST_INVALID"
        case manifestPartial = "MANIFEST_PARTIAL"
        case manifestMismatch = "MANIFEST_MISMATCH"
        case noChecksums = "NO_CHECKSUMS"
        case backupDamaged = "BACKUP_DAMAGED"
        case sourceChanged = "SOURCE_CHANGED"
        case targetLost = "TARGET_LOST"
        case hostRestarted = "HOST_RESTARTED"
        case noSpace = "NO_SPACE"
        case ioError = "IO_ERROR"
        case flushInterrupted = "FLUSH_INTERRUPTED"
        case jobNotFound = "JOB_NOT_FOUND"
        case jobExists = "JOB_EXISTS"
        case jobState = "JOB_STATE"
        case jobCancelled = "JOB_CANCELLED"
        case requestKeyReused = "REQUEST_KEY_REUSED"
        case fieldInvalid = "FIELD_INVALID"
        case fieldUnimplemented = "FIELD_UNIMPLEMENTED"
        case agentStopping = "AGENT_STOPPING"
        case agentRestarted = "AGENT_RESTARTED"
        case stateDamaged = "STATE_DAMAGED"
        case stateSuperseded = "STATE_SUPERSEDED"
    }
}

extension AgentError: CustomStringConvertible {
    package var description: String { message }
}
