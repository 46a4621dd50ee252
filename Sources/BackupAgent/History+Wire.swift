internal import DriveBackupWire

// What is kept is what the wire says, so that everything that jobs and events have is kept by itself.

extension StateStore.HistoryBatch {
    init(_ entries: [HistoryEntry], sequence: UInt64?, jobNumber: UInt64?) {
        self.sequence = sequence
        self.jobNumber = jobNumber
        for entry in entries {
            switch entry {
            case .event(let event): events.append(StateStore.StoredEvent(event))
            case .ended(let number, let info): jobs.append(StateStore.StoredJob(number, info))
            case .key(let change): keys.append(change)
            }
        }
    }
}

extension StateStore.StoredEvent {
    init(_ event: JobEvent) {
        let wire = event.wire
        self.init(
            sequence: event.sequence, time: event.time, job: event.job, jobID: event.jobID,
            kind: event.kind.word, body: encoded(wire))
    }
}

extension StateStore.StoredJob {
    init(_ number: JobNumber, _ info: JobInfo) {
        let wire = info.wire
        self.init(
            number: number, id: wire.id, drive: wire.drive, target: wire.target, result: wire.result.jsonName,
            error: wire.error?.message ?? "", createdAt: wire.createdAt, endedAt: wire.endedAt,
            bytes: wire.progress?.current ?? 0, lastSequence: wire.lastSequence, body: encoded(wire))
    }
}

/// Strings of jobs have no NUL: ids and paths were checked when they came in, messages are cleaned on their way out.
private func encoded(_ message: some WireMessage) -> [UInt8] {
    do throws(WireError) { return try message.encode() } catch {
        preconditionFailure("what is told of a job can be encoded: \(error)")
    }
}

extension JobEvent.Kind {
    /// The name of the event's case in the schema.
    fileprivate var word: String {
        switch self {
        case .started: "started"
        case .stateChanged: "state_changed"
        case .progress: "progress"
        case .ioError: "io_error"
        case .pending: "pending"
        case .completed: "completed"
        case .failed: "failed"
        case .cancelled: "cancelled"
        }
    }
}
