package import BlockIO

/// Why `BackupJob.run` ended without having copied everything.
package enum BackupFailure: Error, Sendable, Hashable {
    /// `JobControl.cancel` was called, or the task that ran the job was cancelled.
    case cancelled
    /// `JobControl.suspend` was called: the guest's old content is saved as before, nothing is copied any more.
    case suspended
    /// The drive or the target failed a request. Of several the first in time.
    case failed(IOFailure)

    /// What failed, unless the job was cancelled.
    package var ioFailure: IOFailure? {
        if case .failed(let failure) = self { failure } else { nil }
    }
}

/// A request that failed: whose, which, where and why.
package struct IOFailure: Error, Sendable, Hashable {
    package enum Side: String, Sendable, Hashable { case source, target, staging }

    package enum Operation: String, Sendable, Hashable { case read, write, writeZeroes }

    package var side: Side
    package var operation: Operation
    /// The bytes that the request was about, within the drive's size.
    package var range: ByteRange
    package var error: BlockError

    package init(_ side: Side, _ operation: Operation, _ range: ByteRange, _ error: BlockError) {
        self.side = side
        self.operation = operation
        self.range = range
        self.error = error
    }
}

extension BackupFailure: CustomStringConvertible {
    package var description: String {
        switch self {
        case .cancelled: "The backup was cancelled"
        case .suspended: "The backup was suspended"
        case .failed(let failure): failure.description
        }
    }
}

extension IOFailure: CustomStringConvertible {
    package var description: String { error.message }
}
