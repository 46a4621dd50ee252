internal import BackupJobs
internal import BlockIO
package import DiskImages

/// What a client is told about a drive.
package struct DriveInfo: Sendable, Hashable {
    package struct BackingFile: Sendable, Hashable {
        package var file: String
        package var format: ImageFormat
        package var size: UInt64
    }

    package var id: String
    package var file: String
    /// nil where it is not known, since the image could not be opened.
    package var format: ImageFormat?
    /// In bytes.
    package var size: UInt64 = 0
    package var isReadOnly: Bool
    package var cache: CacheMode
    /// Nearest first.
    package var backing: [BackingFile] = []
    /// In bytes; 0 for raw.
    package var clusterSize: UInt64 = 0
    /// The job that uses the drive.
    package var jobID: String?
    package var isFromCommandLine: Bool
    /// Why the drive is not open.
    package var problem: String?
    /// The names of its exports, points in time included, in order.
    package var exports: [String] = []
}

/// A drive that a job uses; it stays open until it is given back.
package struct DriveLease: Sendable {
    let id: String
    let image: OpenImage
    /// What its guests and its jobs use.
    let live: LiveDrive
    /// It is no drive: a backup, opened to be read by one job, which closes it.
    var isBackup = false

    /// What the image's top layer lies on, for sync `top`; nil where nothing does.
    var base: (any BlockDevice)? { image.backingDevice }
}
