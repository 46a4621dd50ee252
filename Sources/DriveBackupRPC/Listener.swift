internal import Glibc
internal import NIOCore
internal import NIOPosix

/// A socket that takes connections.
struct Listener: Sendable {
    let address: RPCAddress
    private let channel: any Channel
    private let socketFile: SocketFile?

    /// How many connections the system keeps for us until we take them.
    private static let backlog: CInt = 1024

    static func open(
        _ address: RPCAddress, limits: RPCLimits,
        accept: @escaping @Sendable (any Channel) -> EventLoopFuture<Void>
    ) async throws(RPCStatus) -> Listener {
        let bootstrap = ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .serverChannelOption(.backlog, value: Int32(Self.backlog))
            .childChannelInitializer(accept)
        switch address {
        case .unix(let path):
            try await SocketFile.removeStale(path)
            let (descriptor, file) = try await SocketFile.bind(path)
            do {
                // The channel owns the descriptor from here on, also if this fails.
                let channel = try await bootstrap.withBoundSocket(descriptor).get()
                // A socket that was bound elsewhere listens with NIO's default of 128, whatever the option says.
                // On the loop, where the channel cannot be closed meanwhile.
                try await channel.eventLoop.submit {
                    if channel.isActive { listen(descriptor, Self.backlog) }
                }.get()
                return Listener(address: address, channel: channel, socketFile: file)
            } catch {
                await file.remove()
                throw failure(address, error)
            }
        case .tcp(let host, let port):
            do {
                let resolved = try await NIOThreadPool.singleton.runIfActive {
                    try SocketAddress.makeAddressResolvingHost(host, port: port)
                }
                guard resolved.isLoopback || limits.allowsRemote else {
                    throw RPCStatus(
                        .invalidArgument,
                        "Couldn't listen on \(address): without TLS only loopback addresses are allowed.",
                        reason: "FIELD_INVALID", subject: "listen")
                }
                let channel = try await bootstrap.serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
                    .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
                    .bind(to: resolved).get()
                return Listener(
                    address: .tcp(host: host, port: channel.localAddress?.port ?? port), channel: channel,
                    socketFile: nil)
            } catch let status as RPCStatus {
                throw status
            } catch {
                throw failure(address, error)
            }
        case .tls: throw RPCStatus.tlsUnavailable(address)
        }
    }

    private init(address: RPCAddress, channel: any Channel, socketFile: SocketFile?) {
        self.address = address
        self.channel = channel
        self.socketFile = socketFile
    }

    /// Takes no connections any more and removes the socket's file, if it is still ours.
    func close() async {
        await socketFile?.remove()
        // It can only have been closed already.
        try? await channel.close()
    }

    /// Who is at the other end of an accepted connection.
    static func peer(of channel: any Channel, at address: RPCAddress) -> EventLoopFuture<RPCPeer> {
        switch address {
        case .unix:
            guard let provider = channel as? any SocketOptionProvider else {
                preconditionFailure("a socket's channel has socket options")
            }
            let credentials: EventLoopFuture<PeerCredentials> = provider.unsafeGetSocketOption(
                level: .socket, name: .init(rawValue: SO_PEERCRED))
            return credentials.map { credentials in
                RPCPeer(
                    transport: .unix,
                    credentials: RPCPeer.Credentials(
                        processID: credentials.processID, userID: credentials.userID,
                        groupID: credentials.groupID))
            }
        case .tcp, .tls:
            let remote = channel.remoteAddress
            var text = remote?.ipAddress ?? ""
            if let port = remote?.port { text = text.contains(":") ? "[\(text)]:\(port)" : "\(text):\(port)" }
            return channel.eventLoop.makeSucceededFuture(
                RPCPeer(transport: .tcp, address: text, isLoopback: remote?.isLoopback ?? false))
        }
    }

    private static func failure(_ address: RPCAddress, _ error: any Error) -> RPCStatus {
        RPCStatus(.failedPrecondition, "Couldn't listen on \(address): \(error.sentence).")
    }
}

/// What SO_PEERCRED returns: `struct ucred` of unix(7).
private struct PeerCredentials: Sendable {
    var processID: Int32
    var userID: UInt32
    var groupID: UInt32
}

extension SocketAddress {
    /// Whether only this machine can use it: 127.0.0.0/8, ::1, the same mapped into IPv6, or a Unix socket.
    var isLoopback: Bool {
        // inet_ntop's form, of which there is one for each address.
        guard let text = ipAddress else { return true }
        return text.hasPrefix("127.") || text == "::1" || text.hasPrefix("::ffff:127.")
    }
}
