internal import BlockIO
internal import Glibc

// The one place that says which reason a failed file or image gives.

extension AgentError {
    /// What the purpose of a file adds to an error of it.
    enum Role: Sendable, Hashable {
        case drive
        case target
        /// A running job's drive, or its target.
        case source, destination
        /// The files of the agent's own that a job needs.
        case staging
        /// A socket that exports are served at.
        case listener
    }

    /// The agent's word for a failed operation on a file.
    init(_ error: BlockError, of role: Role, subject: String) {
        let isTarget = role == .target || role == .destination
        let reason: Reason =
            switch error.code {
            case _ where role == .listener: .listenFailed
            case .noSpace where role == .staging: .stagingFull
            case .notFound: .fileNotFound
            case .alreadyExists: isTarget ? .targetExists : .driveExists
            case .denied: error.errno == 0 ? .pathNotAllowed : .accessDenied
            case .locked: isTarget ? .targetLocked : .fileLocked
            case .busy: isTarget ? .targetBusy : .driveBusy
            case .noSpace: .noSpace
            case .corrupt: .imageCorrupt
            case .unsupported: .imageUnsupported
            case .invalid: error.errno == 0 ? .imageUnsupported : .pathInvalid
            case .dataLost: error.isNoSpace ? .noSpace : .ioError
            case .inputOutput, .gone: .ioError
            case .cancelled: .jobCancelled
            }
        self.init(reason, error.message, subject: subject)
    }
}

extension AgentError {
    /// Why a point in time was lost: old content could not be saved.
    init(lostPointInTimeBy error: BlockError, drive: String) {
        let reason: Reason =
            if error.code == .noSpace {
                .stagingFull
            } else if error.errno == ETIMEDOUT {
                .cbwTimeout
            } else {
                .snapshotBroken
            }
        self.init(reason, error.message, subject: drive)
    }
}
