internal import BackupJobs
internal import BlockIO
internal import Foundation
internal import TestKit

/// A record and staging for a job of a simulation, which leave nothing behind.
struct Scratch {
    let record: JobRecord
    let staging: Staging

    init(_ drive: any BlockDevice, target: any BackupTarget) {
        self.init(
            size: drive.size, clusterSize: BackupJob.clusterSize(target: target.clusterSize),
            engine: drive.engine)
    }

    init(size: UInt64, clusterSize: UInt64, engine: any IOEngine) {
        let path = FileManager.default.temporaryDirectory.path + "/drive-backup-record-\(UUID().uuidString)"
        do {
            record = try JobRecord.create(at: path, driveSize: size, clusterSize: clusterSize, engine: engine)
            try record.remove()
        } catch { preconditionFailure("no record for a test: \(error)") }
        staging = Staging(on: SimDisk(size: size.roundedUp(toMultipleOf: 4096), engine: engine))
    }
}
