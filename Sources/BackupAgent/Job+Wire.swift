internal import BackupJobs
internal import BlockIO
internal import DiskImages
package import DriveBackupWire

extension JobInfo {
    package var wire: DriveBackupWire.Job {
        var job = DriveBackupWire.Job()
        job.id = id
        job.type = .backup
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
        job.targetBusy = targetBusy
        job.staging = staging.map { usage in
            StagingUsage(used: Int64(clamping: usage.used), limit: Int64(clamping: usage.limit))
        }
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
        case .stateChanged(let state, let previous, let reason):
            var changed = StateChanged()
            changed.state = DriveBackupWire.JobState(rawValue: state.rawValue)
            changed.previous =
                previous.map { DriveBackupWire.JobState(rawValue: $0.rawValue) } ?? .unspecified
            changed.pauseReason = reason.wire
            return .stateChanged(changed)
        case .progress(let progress): return .progress(progress.wire)
        case .ioError(let error): return .ioError(error.wire)
        case .pending: return .pending(Pending())
        case .completed(let progress):
            var completed = Completed()
            completed.result = .completed
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
        event.count = 1
        return event
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
