internal import ArgumentParser
internal import DriveBackupClient

/// What `--sync` takes.
enum SyncWord: String, CaseIterable, ExpressibleByArgument {
    case full, top

    var mode: SyncMode { self == .full ? .full : .top }
}

/// What `--format` takes.
enum FormatWord: String, CaseIterable, ExpressibleByArgument {
    case raw, qcow2
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
