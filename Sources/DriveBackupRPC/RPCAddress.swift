/// Where an agent listens.
///
/// Written `unix:PATH`, `unix://PATH`, `tcp://HOST:PORT` or `tls://HOST:PORT`; an IPv6 address is in brackets.
public enum RPCAddress: Sendable, Hashable, CustomStringConvertible {
    case unix(path: String)
    case tcp(host: String, port: Int)
    case tls(host: String, port: Int)

    /// The address that `text` is a form of. The error says what is wrong with it and what would be right.
    public init(parsing text: String) throws(RPCStatus) {
        if let path = text.dropping(prefix: "unix://") ?? text.dropping(prefix: "unix:") {
            self = try .unix(path: Self.path(path, of: text))
        } else if let rest = text.dropping(prefix: "tcp://") {
            let (host, port) = try Self.hostAndPort(rest, of: text)
            self = .tcp(host: host, port: port)
        } else if let rest = text.dropping(prefix: "tls://") {
            let (host, port) = try Self.hostAndPort(rest, of: text)
            self = .tls(host: host, port: port)
        } else {
            throw Self.invalid(text, "it must begin with unix:, tcp:// or tls://")
        }
    }

    public var description: String {
        switch self {
        case .unix(let path): "unix:\(path)"
        case .tcp(let host, let port): "tcp://\(Self.bracketed(host)):\(port)"
        case .tls(let host, let port): "tls://\(Self.bracketed(host)):\(port)"
        }
    }

    /// A path must fit into `sockaddr_un`, with its terminating NUL.
    static let longestPath = 107

    private static func path(_ path: String, of text: String) throws(RPCStatus) -> String {
        if path.isEmpty {
            throw invalid(text, "the path is missing, as in unix:/run/drive-backup/agent.sock")
        }
        if path.utf8.contains(0) { throw invalid(text, "the path contains NUL") }
        if path.utf8.count > longestPath {
            throw invalid(
                text, "a socket's path has at most \(longestPath) bytes, this one has \(path.utf8.count)")
        }
        return path
    }

    private static func hostAndPort(
        _ rest: String, of text: String
    ) throws(RPCStatus) -> (host: String, port: Int) {
        let host: Substring
        let port: Substring
        if rest.hasPrefix("[") {
            guard let end = rest.firstIndex(of: "]"), rest[end...].hasPrefix("]:") else {
                throw invalid(text, "an IPv6 address is written as in tcp://[::1]:7000")
            }
            host = rest[rest.index(after: rest.startIndex)..<end]
            port = rest[end...].dropFirst(2)
        } else {
            guard let colon = rest.lastIndex(of: ":") else {
                throw invalid(text, "the port is missing, as in tcp://127.0.0.1:7000")
            }
            host = rest[..<colon]
            port = rest[rest.index(after: colon)...]
            if host.contains(":") {
                throw invalid(text, "an IPv6 address is put into brackets, as in tcp://[::1]:7000")
            }
        }
        if host.isEmpty || host.utf8.contains(0) { throw invalid(text, "the host is missing") }
        guard port.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), let number = Int(port), number <= 65535
        else {
            throw invalid(text, "\"\(port)\" is not a port, a number from 0 to 65535")
        }
        return (String(host), number)
    }

    private static func bracketed(_ host: String) -> String { host.contains(":") ? "[\(host)]" : host }

    private static func invalid(_ text: String, _ why: String) -> RPCStatus {
        RPCStatus(
            .invalidArgument, "\"\(text)\" is not an address: \(why).", reason: "FIELD_INVALID",
            subject: "address")
    }
}

extension String {
    /// What follows `prefix`, or nil if the string does not begin with it.
    fileprivate func dropping(prefix: String) -> String? {
        hasPrefix(prefix) ? String(dropFirst(prefix.count)) : nil
    }
}
