internal import ArgumentParser
internal import DriveBackupClient

/// What `--sync` takes.
enum SyncWord: String, CaseIterable, ExpressibleByArgument {
    case full, top
    case none = "none"

    var mode: SyncMode {
        switch self {
        case .full: .full
        case .top: .top
        case .none: .none
        }
    }
}

/// What `--on-cbw-error` takes.
enum CbwErrorWord: String, CaseIterable, ExpressibleByArgument {
    case breakSnapshot = "break-snapshot"
    case breakGuestWrite = "break-guest-write"

    var policy: CbwErrorPolicy { self == .breakSnapshot ? .breakSnapshot : .breakGuestWrite }
}

/// What `--checksum` takes.
enum ChecksumWord: String, CaseIterable, ExpressibleByArgument {
    case xxh3128 = "xxh3-128"
    case sha256 = "sha-256"

    var checksum: Checksum { self == .sha256 ? .sha256 : .xxh3128 }
}

/// What `--clone` takes.
enum CloneWord: String, CaseIterable, ExpressibleByArgument {
    case auto, never
}

/// What `--staging-full` takes.
enum StagingFullWord: String, CaseIterable, ExpressibleByArgument {
    case fail, stall

    var policy: StagingFullPolicy { self == .fail ? .fail : .stall }
}

/// What `--on-source-error` and `--on-target-error` take.
enum ErrorPolicyWord: String, CaseIterable, ExpressibleByArgument {
    case report, ignore, enospc, stop, auto

    var policy: ErrorPolicy {
        switch self {
        case .report: .report
        case .ignore: .ignore
        case .enospc: .enospc
        case .stop: .stop
        case .auto: .auto
        }
    }
}

/// What `--completion` takes.
enum CompletionWord: String, CaseIterable, ExpressibleByArgument {
    case individual, grouped

    var completion: GroupCompletion { self == .individual ? .individual : .grouped }
}

/// What `--format` takes.
enum FormatWord: String, CaseIterable, ExpressibleByArgument {
    case raw, qcow2
}

/// What `--cache` takes.
enum CacheWord: String, CaseIterable, ExpressibleByArgument {
    case writeback, none
}

/// What `--mode` takes.
enum ModeWord: String, CaseIterable, ExpressibleByArgument {
    case absolutePaths = "absolute-paths"
    case existing

    var mode: TargetMode { self == .absolutePaths ? .absolutePaths : .existing }
}

/// A rate in bytes a second, for the `transform` of an option.
@Sendable func parseRate(_ text: String) throws -> Int64 {
    do throws(ByteSize.Refusal) {
        return try ByteSize.parse(text)
    } catch {
        throw ValidationError(error.description)
    }
}

/// A time in seconds, with a fraction perhaps, as nanoseconds for the wire, where 0 is -1: no limit.
@Sendable func parseTimeout(_ text: String) throws -> Int64 {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard (1...2).contains(parts.count),
        parts.allSatisfy({
            !$0.isEmpty && $0.utf8.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
        }),
        let seconds = Int64(parts[0]), seconds <= 1_000_000_000,
        let fraction = Int64((parts.count == 2 ? parts[1].prefix(9) : "").padded(to: 9))
    else { throw ValidationError("'\(text)' is no time; give seconds, for example 5 or 0.5 (0 is no limit)") }
    let nanoseconds = seconds * 1_000_000_000 + fraction
    guard nanoseconds > 0 || text.saysZero else {
        throw ValidationError("'\(text)' is less than a nanosecond (0 is no limit)")
    }
    return nanoseconds == 0 ? -1 : nanoseconds
}

extension StringProtocol {
    /// Whether a number in digits, with a point perhaps, is zero as it was written, before anything was cut off.
    var saysZero: Bool { utf8.allSatisfy { $0 == UInt8(ascii: "0") || $0 == UInt8(ascii: ".") } }
}

extension Substring {
    /// With zeroes behind it, to a length.
    fileprivate func padded(to count: Int) -> String {
        self + String(repeating: "0", count: Swift.max(0, count - self.count))
    }
}
