internal import Glibc

/// What the process was started with, as far as the command looks at it.
struct Surroundings: Sendable {
    var environment: [String: String]
    var currentDirectory: String?
    /// Whether people look at standard error.
    var errorIsTerminal: Bool

    /// The surroundings of this process.
    static func current() -> Surroundings {
        let names = ["DRIVE_BACKUP_AGENT", "LC_ALL", "LC_CTYPE", "LANG", "TERM", "COLUMNS"]
        var environment: [String: String] = [:]
        for name in names {
            if let value = getenv(name) { environment[name] = String(cString: value) }
        }
        var directory: String?
        if let path = getcwd(nil, 0) {
            directory = String(cString: path)
            free(path)
        }
        return Surroundings(
            environment: environment, currentDirectory: directory, errorIsTerminal: isatty(STDERR_FILENO) == 1
        )
    }

    /// The agent to talk to when `--agent` does not say: `$DRIVE_BACKUP_AGENT`, else the local one.
    var defaultAgent: String {
        guard let given = environment["DRIVE_BACKUP_AGENT"], !given.isEmpty else { return Self.localAgent }
        return given
    }

    static let localAgent = "unix:/run/drive-backup/agent.sock"

    /// Whether a line can be drawn anew in place.
    var canRedraw: Bool { errorIsTerminal && !["", "dumb"].contains(environment["TERM"] ?? "") }

    /// Whether the locale's characters are UTF-8: the first of LC_ALL, LC_CTYPE and LANG that is set decides (POSIX
    /// Base Definitions, 8.2).
    var isUTF8: Bool {
        let locale =
            ["LC_ALL", "LC_CTYPE", "LANG"].compactMap { environment[$0] }.first { !$0.isEmpty } ?? ""
        let codeset = locale.lowercased().split(separator: ".", maxSplits: 1).dropFirst().first ?? ""
        return codeset.hasPrefix("utf-8") || codeset.hasPrefix("utf8")
    }

    /// `path` as seen from the root. Links and `..` stay as they are: only the agent may say where they lead.
    func absolute(_ path: String) throws(CommandFailure) -> String {
        guard !path.isEmpty else { throw .usage("a path is empty") }
        guard path.utf8.first != UInt8(ascii: "/") else { return path }
        if let scheme = path.firstRange(of: "://"), !path[..<scheme.lowerBound].contains("/") {
            throw .usage("'\(path)' is no path; only files on the agent's host can be named yet")
        }
        guard let currentDirectory, currentDirectory.utf8.first == UInt8(ascii: "/") else {
            throw CommandFailure(
                .failed,
                "couldn't make \(path) absolute: the current directory cannot be told; give the whole path")
        }
        var rest = path[...]
        while rest.hasPrefix("./") { rest = rest.dropFirst(2).drop { $0 == "/" } }
        return currentDirectory == "/" ? "/\(rest)" : "\(currentDirectory)/\(rest)"
    }
}

extension Surroundings {
    /// The address of an export, with the path of a Unix socket as seen from the root. Only the agent says whether it makes
    /// sense otherwise.
    func absoluteAddress(_ address: String) throws(CommandFailure) -> String {
        for prefix in ["unix://", "unix:"] where address.hasPrefix(prefix) {
            return "unix:" + (try absolute(String(address.dropFirst(prefix.count))))
        }
        return address
    }
}

/// The width of the terminal behind standard error in columns; 80 if it does not say.
func terminalWidth() -> Int {
    var size = winsize()
    guard ioctl(STDERR_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else { return 80 }
    return Int(size.ws_col)
}
