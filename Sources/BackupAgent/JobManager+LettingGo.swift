internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Logging

// A job that ends has a guest to let go, exports of its point in time to end, a drive to give back and files to remove.
// The guest is let go first, and waits for nobody. The files go last: somebody may still read them, for as long as a disk
// hangs, and neither the drive nor the target waits for that.

/// A job's letting go of what it has.
struct LettingGo: Sendable {
    /// Ends when the drive is given back.
    let drive: Task<Void, Never>
    /// Staging and record are removed, as far as they can be.
    let areFilesRemoved = OneShot<Void>()
    /// That takes its time: the file system gives back much space.
    let areFilesLarge: Bool
}

extension JobManager {
    /// How long it takes, at most, until it is said that a job's files cannot be removed.
    private static var removalPatience: Duration { .seconds(2) }
    /// From how many bytes on files are large.
    private static var largeFiles: UInt64 { 16 << 20 }

    /// Lets go of a job's drive, once: guests are not delayed any more, exports of the point in time end, the drive is free.
    /// Returns when that is done. Never waits for the target or for staging; see `filesRemoved`.
    func letGo(_ number: JobNumber) async {
        if let begun = records[number]?.lettingGo { return await begun.drive.value }
        guard let record = records[number], let hold = record.hold else { return }
        records[number]?.hold = nil
        // Of digests there are some 16 bytes for each 64 KiB.
        let size = UInt64(hold.staging.usage.used) + progress(of: record).current / 4096
        let lettingGo = LettingGo(
            drive: Task { await self.giveBack(hold, of: number) }, areFilesLarge: size > Self.largeFiles)
        records[number]?.lettingGo = lettingGo
        // The job's end may come before theirs.
        removals[number] = Task {
            await lettingGo.drive.value
            let watching = Task { await self.watchRemoval(lettingGo, record.spec.jobID) }
            await self.removeFiles(of: hold)
            lettingGo.areFilesRemoved.fulfil(())
            await watching.value
            removals[number] = nil
        }
        await lettingGo.drive.value
    }

    /// Returns when a job's staging and record are gone after `letGo`; when that takes too long it is left to itself.
    func filesRemoved(_ number: JobNumber) async {
        _ = await records[number]?.lettingGo?.areFilesRemoved.wait(atMost: Self.removalPatience)
    }

    /// The same, for a job that is given up: large files of a backup are left to themselves at once. (A backup that is read
    /// is closed with them, and may be used by the next job.)
    func smallFilesRemoved(_ number: JobNumber) async {
        guard let record = records[number], let lettingGo = record.lettingGo else { return }
        if !lettingGo.areFilesLarge || record.spec.work != .backup { await filesRemoved(number) }
    }

    private func watchRemoval(_ lettingGo: LettingGo, _ jobID: String) async {
        guard await lettingGo.areFilesRemoved.wait(atMost: Self.removalPatience) == nil else { return }
        logger.warning(
            """
            Staging of the job \(jobID) is still being used (a disk that hangs?); it is removed when that \
            ends, or when the agent starts again
            """)
    }

    private func giveBack(_ hold: DriveHold, of number: JobNumber) async {
        await hold.job?.letGo()
        await hold.lease.image.noteChanges(in: nil)
        await exports?.endSnapshots(of: number)
        // A backup is closed when nobody reads it any more.
        if !hold.lease.isBackup { await drives.giveBack(hold.lease) }
    }

    private func removeFiles(of hold: DriveHold) async {
        await hold.job?.ended()
        // Without them the next agent would not know why they are not there.
        await saved(atMost: Self.removalPatience)
        do throws(BlockError) { try await hold.staging.remove() } catch {
            logger.warning("\(error.message); it is removed when the agent starts again")
        }
        do throws(BlockError) { try await hold.sums.remove() } catch {
            logger.warning("\(error.message); it is removed when the agent starts again")
        }
        if hold.lease.isBackup { await close(hold.lease) }
        guard let record = hold.record else { return }
        let removed: Result<Void, BlockError> = await hold.lease.live.engine.blocking {
            Result { () throws(BlockError) in try record.remove() }
        }
        do throws(BlockError) { try removed.get() } catch {
            logger.warning("\(error.message); it is removed when the agent starts again")
        }
    }
}
