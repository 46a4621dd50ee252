/// Where exports are served.
package enum NBDAddress: Sendable, Hashable {
    /// A Unix socket by its absolute path.
    case unix(path: String)
    /// A host name or address, and a port; port 0 lets the system choose one.
    case tcp(host: String, port: UInt16)
}

extension NBDAddress: CustomStringConvertible {
    package var description: String {
        switch self {
        case .unix(let path): "unix:\(path)"
        // An IPv6 address has colons of its own.
        case .tcp(let host, let port):
            host.contains(":") ? "tcp://[\(host)]:\(port)" : "tcp://\(host):\(port)"
        }
    }
}
