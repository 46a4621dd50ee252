internal import BlockIO
internal import DiskImages
internal import Glibc

/// Which files a client may have opened, read or made.
package enum PathAccess: Sendable, Hashable, Codable {
    /// The operator's own command line, and root's Unix socket when no directories were named.
    case everything
    /// Only what lies below these directories, which are absolute and free of links.
    case below([String])
    /// A client from the network when no directories were named.
    case nothing

    /// Throws PATH_NOT_ALLOWED unless `path`, absolute and free of links, may be used.
    package func check(_ path: String) throws(AgentError) {
        switch self {
        case .everything: return
        case .nothing:
            throw AgentError(
                .pathNotAllowed,
                "Couldn't use \(path): no directories are allowed for clients other than root's own on this "
                    + "host (start the agent with --allow-directory)",
                subject: path)
        case .below(let directories):
            guard !directories.contains(where: { path.isAtOrBelow($0) }) else { return }
            throw AgentError(
                .pathNotAllowed,
                "Couldn't use \(path): it is not below an allowed directory "
                    + "(\(directories.joined(separator: ", ")))",
                subject: path)
        }
    }

    /// The same rule for the backing files that images name.
    var gate: ImageGate { gate { _ in } }

    /// So, and `note` is called with each path that passes.
    func gate(noting note: @escaping @Sendable (String) -> Void) -> ImageGate {
        ImageGate { (path: String) throws(BlockError) in
            do throws(AgentError) { try check(path) } catch {
                throw BlockError(.denied, error.message)
            }
            note(path)
        }
    }
}

/// The agent's rule about paths: what `--allow-directory` said.
package struct PathPolicy: Sendable {
    /// `path` with no links in it; nil where there is no such file, or its path is no text. Blocks.
    static func truePath(_ path: String) -> String? {
        guard let resolved = realpath(path, nil) else { return nil }
        defer { free(resolved) }
        return String(validatingCString: resolved)
    }

    /// The directories as they were given.
    package let directories: [String]
    private let resolved: [String]

    /// Finds the directories' true paths. Blocks; throws a sentence for the operator.
    package init(directories: [String]) throws(AgentError) {
        var resolved: [String] = []
        for directory in directories {
            try Self.checkSyntax(directory)
            do throws(BlockError) { resolved.append(try Directory(directory).path) } catch {
                throw AgentError(
                    .pathInvalid, "Couldn't allow the directory \(directory): \(error.message)",
                    subject: directory)
            }
        }
        self.directories = directories
        self.resolved = resolved
    }

    /// What a client may use; `isTrusted` says that it is root (or the agent's own user) on a Unix socket.
    package func access(isTrusted: Bool) -> PathAccess {
        guard resolved.isEmpty else { return .below(resolved) }
        return isTrusted ? .everything : .nothing
    }

    /// Throws PATH_INVALID unless `path` is one that the agent takes: absolute, not too long, naming a file.
    package static func checkSyntax(_ path: String) throws(AgentError) {
        let why: String
        if path.isEmpty {
            why = "it is empty"
        } else if path.utf8.contains(0) {
            why = "it contains a NUL byte"
        } else if !path.isAbsolutePath {
            why = "it is not absolute"
        } else if path.utf8.count > 4000 {
            why = "it is too long"
        } else {
            return
        }
        throw AgentError(
            .pathInvalid, "Couldn't use the path \(Identifier.quoted(path)): \(why)", subject: path)
    }

    /// The directory and the last name of a path that is to be made.
    package static func split(_ path: String) throws(AgentError) -> (directory: String, name: String) {
        try checkSyntax(path)
        guard let (directory, name) = path.splitAtLastSlash else {
            throw AgentError(.pathInvalid, "Couldn't use the path \(path): it is not absolute", subject: path)
        }
        guard !name.isEmpty, name != ".", name != ".." else {
            throw AgentError(.pathInvalid, "Couldn't use the path \(path): it names no file", subject: path)
        }
        return (directory.isEmpty ? "/" : String(directory), String(name))
    }
}
