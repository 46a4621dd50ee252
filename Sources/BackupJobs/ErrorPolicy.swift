package import BlockIO
internal import Glibc

/// What a job does about an error of one side, its drive or its target.
package enum ErrorPolicy: String, Sendable, Hashable, Codable, CaseIterable {
    /// The job fails.
    case report
    /// After a few more tries the range is left out and recorded as missing.
    case ignore
    /// The job is paused when there is no space, and fails otherwise.
    case enospc
    /// The job is paused.
    case stop
    /// As `enospc`.
    case auto

    /// What is done about one error.
    package enum Action: Sendable, Hashable { case report, ignore, stop }

    /// What is done about `error`. A flush or a write-back that failed fails the job under every policy: what it lost may be
    /// nowhere else any more (DATAPATH.md rule 10). So does the end of the process that does the work, and an operation that was
    /// given up: there is nothing to wait for.
    package func action(on error: BlockError) -> Action {
        if error.code == .dataLost { return .report }
        if error.code == .gone || error.code == .cancelled { return .report }
        return switch self {
        case .report: .report
        case .ignore: .ignore
        case .stop: .stop
        case .enospc, .auto: error.code == .noSpace && error.errno != EFBIG ? .stop : .report
        }
    }

    /// How long `ignore` waits before each of its further tries: a quarter of a second together, whatever the length of the
    /// range.
    static let pauses: [Duration] = [.milliseconds(10), .milliseconds(60), .milliseconds(180)]
}
