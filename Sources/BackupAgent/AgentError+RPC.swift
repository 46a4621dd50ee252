package import DriveBackupRPC
internal import DriveBackupWire

// The one place that says which RPC status a reason gives.

extension AgentError.Reason {
    /// gRPC's code for the reason.
    var code: RPCCode {
        switch self {
        case .driveNotFound, .fileNotFound, .targetMissing, .jobNotFound, .exportNotFound, .manifestMissing:
            .notFound
        case .driveExists, .targetExists, .targetPartialExists, .jobExists, .exportExists, .requestKeyReused,
            .manifestExists:
            .alreadyExists
        case .pathNotAllowed, .accessDenied: .permissionDenied
        case .pathInvalid, .fieldInvalid: .invalidArgument
        case .driveBusy, .driveInvalid, .fileLocked, .imageUnsupported, .targetIsSource, .targetBusy,
            .targetLocked, .targetSizeMismatch, .targetFormatAmbiguous, .targetNotRegular,
            .backingUnsupported, .backingMismatch, .exportInvalid, .listenFailed, .jobState,
            .manifestInvalid, .manifestPartial, .manifestMismatch, .noChecksums:
            .failedPrecondition
        case .imageCorrupt, .stateDamaged, .backupDamaged: .dataLoss
        case .noSpace, .stagingFull: .resourceExhausted
        case .ioError, .flushInterrupted, .cbwTimeout, .snapshotBroken, .snapshotFailed, .jobCancelled,
            .agentRestarted, .sourceChanged, .targetLost, .hostRestarted:
            .aborted
        case .fieldUnimplemented, .stateSuperseded: .unimplemented
        case .agentStopping: .unavailable
        }
    }
}

extension AgentError {
    /// The status that a call ends with.
    package var status: RPCStatus {
        RPCStatus(reason.code, message, reason: reason.rawValue, subject: subject)
    }

    /// What a job says of its failure.
    var wire: DriveBackupWire.JobError {
        var error = DriveBackupWire.JobError()
        error.code = StatusCode(rawValue: Int32(reason.code.rawValue))
        error.reason = reason.rawValue
        error.message = message.replacing("\0", with: "\u{FFFD}")
        return error
    }

    init(_ status: RPCStatus) {
        self.init(Reason(rawValue: status.reason) ?? .ioError, status.message, subject: status.subject)
    }
}
