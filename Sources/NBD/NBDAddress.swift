/// Where exports are served.
package enum NBDAddress: Sendable, Hashable {
    /// A Unix socket by its absolute path.
    case unix(path: String)
    /// A host name or address, and a port; port 0 lets the system choose one.
    case tcp(host: String, port: UInt16)
}
