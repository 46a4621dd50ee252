internal import BlockIO
internal import DriveBackupRPC
internal import Glibc
internal import NBD

/// Where an export is served, as it was written.
package struct ExportAddress: Sendable, Hashable, CustomStringConvertible {
    private let address: RPCAddress

    /// Reads an address; only what can be said without looking anything up is checked.
    package init(parsing text: String) throws(AgentError) {
        do throws(RPCStatus) { address = try RPCAddress(parsing: text) } catch { throw AgentError(error) }
        if case .tls = address {
            throw AgentError(
                .fieldUnimplemented,
                "\(text): exports over TLS are not implemented yet (unix:PATH and tcp://HOST:PORT are)",
                subject: "address")
        }
    }

    private init(_ address: RPCAddress) { self.address = address }

    package var description: String { address.description }

    /// The path of a Unix socket must be absolute.
    func checkSyntax() throws(AgentError) {
        if case .unix(let path) = address { _ = try PathPolicy.split(path) }
    }

    /// Where to listen: a path without links in it, below what `access` allows, or a numeric loopback address. Blocks.
    func resolve(access: PathAccess) throws(AgentError) -> NBDAddress {
        switch address {
        case .unix(let path):
            let (parent, name) = try PathPolicy.split(path)
            let resolved: String
            do throws(BlockError) { resolved = try Directory(parent).path(of: name) } catch {
                guard error.code == .notFound else { throw AgentError(error, of: .drive, subject: path) }
                throw AgentError(
                    .fileNotFound, "Couldn't listen on \(self): there is no directory \(parent)",
                    subject: parent)
            }
            try access.check(resolved)
            // The path as it was given may be longer than what it leads to, or shorter.
            do throws(RPCStatus) { _ = try RPCAddress(parsing: "unix:\(resolved)") } catch {
                throw AgentError(error)
            }
            return .unix(path: resolved)
        case .tcp(let host, let port):
            if access == .nothing {
                throw AgentError(
                    .pathNotAllowed,
                    "Couldn't serve an export on \(self): no directories are allowed for clients other than root's own "
                        + "on this host, and so no exports (start the agent with --allow-directory)",
                    subject: "address")
            }
            return .tcp(host: try loopback(host), port: UInt16(port))
        case .tls: preconditionFailure("refused when it was read")
        }
    }

    /// The same with the port that the system chose.
    func listening(at actual: NBDAddress) -> ExportAddress {
        guard case .tcp(let host, 0) = address, case .tcp(_, let port) = actual else { return self }
        return ExportAddress(.tcp(host: host, port: Int(port)))
    }

    /// The numeric address of a host that is this machine only: NBD without TLS is for nobody else. No name is looked up, which
    /// can take long, and all changes of exports wait for each other.
    private func loopback(_ host: String) throws(AgentError) -> String {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        hints.ai_flags = AI_NUMERICHOST
        var found: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(host == "localhost" ? "127.0.0.1" : host, nil, &hints, &found)
        guard result == 0, let first = found else {
            throw AgentError(
                .listenFailed,
                "Couldn't listen on \(self): the host is no numeric address, and not localhost (tcp://127.0.0.1:PORT or "
                    + "tcp://[::1]:PORT are)", subject: "address")
        }
        defer { freeaddrinfo(first) }
        var text = [CChar](repeating: 0, count: Int(NI_MAXHOST))
        let named = getnameinfo(
            first.pointee.ai_addr, first.pointee.ai_addrlen, &text, socklen_t(text.count), nil, 0,
            NI_NUMERICHOST)
        let numeric = text.withUnsafeBufferPointer { $0.baseAddress.map { String(cString: $0) } ?? "" }
        guard named == 0, numeric.hasPrefix("127.") || numeric == "::1" || numeric.hasPrefix("::ffff:127.")
        else {
            throw AgentError(
                .fieldInvalid,
                "Couldn't listen on \(self): without TLS only loopback addresses are allowed",
                subject: "address")
        }
        return numeric
    }
}
