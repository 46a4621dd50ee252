internal import BackupJobs
internal import BlockIO
internal import DiskImages
package import DriveBackupWire

extension JobInfo {
    package var wire: DriveBackupWire.Job {
        var job = DriveBackupWire.Job()
        job.id = id
        job.type =
            switch type {
            case .backup: .backup
            case .verify: .verify
            case .restore: .restore
            }
        job.manifest = manifest
        job.drive = drive
        job.target = target
        job.state = DriveBackupWire.JobState(rawValue: state.rawValue)
        job.result = result.map { DriveBackupWire.JobResult(rawValue: $0.rawValue) } ?? .unspecified
        job.progress = progress.wire
        job.speed = speedBytesPerSecond
        job.error = error?.wire
        job.pauseReason = pauseReason.wire
        job.sync = SyncMode(rawValue: sync.rawValue)
        job.format = format?.rawValue ?? ""
        job.pointInTime = pointInTime
        job.createdAt = createdAt
        job.endedAt = endedAt
        job.manualFinalize = waitsForFinalize
        job.manualDismiss = waitsForDismiss
        job.lastSequence = lastSequence
        job.group = group
        job.grouped = isGrouped
        job.restarts = restarts
        job.staging = staging.map { usage in
            StagingUsage(used: Int64(clamping: usage.used), limit: Int64(clamping: usage.limit))
        }
        job.missingBytes = Int64(clamping: missing.length)
        job.missing = missing.ranges.map(\.wire)
        job.pauseError = pauseError?.wire
        job.errorCount = errorCount
        job.errors = errors.map(\.wire)
        job.onSourceError = onSourceError.wire
        job.onTargetError = onTargetError.wire
        job.targetBusy = targetBusy ?? ""
        job.cloned = isCloned
        return job
    }
}

extension JobEvent {
    package var wire: DriveBackupWire.JobEvent {
        var event = DriveBackupWire.JobEvent()
        event.sequence = sequence
        event.time = time
        event.jobID = jobID
        event.event = kind.wire
        return event
    }
}

extension JobEvent.Kind {
    fileprivate var wire: DriveBackupWire.JobEvent.Event {
        switch self {
        case .started(let started): return .started(started.wire)
        case .stateChanged(let state, let previous, let reason, let error):
            var changed = StateChanged()
            changed.state = DriveBackupWire.JobState(rawValue: state.rawValue)
            changed.previous =
                previous.map { DriveBackupWire.JobState(rawValue: $0.rawValue) } ?? .unspecified
            changed.pauseReason = reason.wire
            changed.pauseError = error?.wire
            return .stateChanged(changed)
        case .progress(let progress): return .progress(progress.wire)
        case .ioError(let error): return .ioError(error.wire)
        case .pending: return .pending(Pending())
        case .completed(let progress, let missing):
            var completed = Completed()
            completed.result = missing.length == 0 ? .completed : .completedWithErrors
            completed.missingBytes = Int64(clamping: missing.length)
            completed.missing = missing.ranges.map(\.wire)
            completed.progress = progress.wire
            return .completed(completed)
        case .failed(let error, let progress):
            var failed = Failed()
            failed.error = error.wire
            failed.progress = progress.wire
            return .failed(failed)
        case .cancelled(let progress):
            var cancelled = Cancelled()
            cancelled.progress = progress.wire
            return .cancelled(cancelled)
        }
    }
}

extension JobEvent.Started {
    fileprivate var wire: DriveBackupWire.Started {
        var started = DriveBackupWire.Started()
        started.drive = drive
        started.target = target
        started.pointInTime = pointInTime
        started.sync = SyncMode(rawValue: sync.rawValue)
        started.format = format
        return started
    }

    init(_ wire: DriveBackupWire.Started) {
        self.init(
            drive: wire.drive, target: wire.target, pointInTime: wire.pointInTime,
            sync: BackupSync(rawValue: wire.sync.rawValue) ?? .full, format: wire.format)
    }
}

extension JobIOError {
    fileprivate var wire: IOErrorEvent {
        var event = IOErrorEvent()
        event.side = DriveBackupWire.Side(rawValue: side.rawValue)
        event.operation = DriveBackupWire.Operation(rawValue: operation.rawValue)
        event.offset = Int64(clamping: range?.offset ?? 0)
        event.length = Int64(clamping: range?.length ?? 0)
        event.errno = errno
        event.message = message.replacing("\0", with: "\u{FFFD}")
        event.action = ErrorAction(rawValue: action.rawValue)
        event.count = count
        return event
    }
}

extension ByteRange {
    fileprivate var wire: DriveBackupWire.Range {
        DriveBackupWire.Range(offset: Int64(clamping: offset), length: Int64(clamping: length))
    }
}

extension BackupJobs.ErrorPolicy {
    fileprivate var wire: DriveBackupWire.ErrorPolicy {
        switch self {
        case .report: .report
        case .ignore: .ignore
        case .enospc: .enospc
        case .stop: .stop
        case .auto: .auto
        }
    }
}

extension JobProgress {
    fileprivate var wire: Progress {
        var progress = Progress()
        progress.current = Int64(clamping: current)
        progress.total = Int64(clamping: total)
        return progress
    }
}

extension PauseReason? {
    fileprivate var wire: DriveBackupWire.PauseReason {
        map { DriveBackupWire.PauseReason(rawValue: $0.rawValue) } ?? .unspecified
    }
}
