internal import Glibc

/// Tells systemd how the agent does, as sd_notify(3) describes, when the agent was started by it.
package enum ServiceManager {
    /// The agent answers on its sockets.
    package static func ready() { notify("READY=1") }
    /// The agent has begun to stop.
    package static func stopping() { notify("STOPPING=1") }

    private static func notify(_ state: String) {
        guard let path = getenv("NOTIFY_SOCKET").map({ String(cString: $0) }) else { return }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        // A leading "@" stands for the NUL of an abstract socket.
        var name = Array(path.utf8)
        if name.first == UInt8(ascii: "@") { name[0] = 0 }
        let fits = withUnsafeMutableBytes(of: &address.sun_path) { space in
            guard !name.isEmpty, name.count < space.count else { return false }
            space.copyBytes(from: name)
            return true
        }
        guard fits else { return }
        let descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        let length = socklen_t(MemoryLayout<sa_family_t>.size + name.count)
        let text = Array(state.utf8)
        // A service manager that does not listen is no reason not to serve.
        _ = withUnsafePointer(to: address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                sendto(descriptor, text, text.count, Int32(truncatingIfNeeded: MSG_NOSIGNAL), address, length)
            }
        }
    }
}
