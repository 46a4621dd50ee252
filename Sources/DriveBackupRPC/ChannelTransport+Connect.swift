internal import NIOCore
internal import NIOPosix

extension ChannelTransport {
    /// Puts what carries `connection` into a new channel's pipeline. A TLS handler would come first here.
    static func build(_ connection: any Connection, in channel: any Channel) throws {
        try channel.pipeline.syncOperations.addHandler(ChannelTransport(connection))
    }

    /// Connects a socket to `address`, lets it carry `connection`, and says on which loop.
    static func connect(
        _ connection: any Connection, to address: RPCAddress, timeout: Duration
    ) async throws(RPCStatus) -> any EventLoop {
        let bootstrap = ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .connectTimeout(.nanoseconds(max(1, Int64(0).adding(timeout))))
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture { try build(connection, in: channel) }
            }
        do {
            switch address {
            case .unix(let path):
                return try await bootstrap.connect(unixDomainSocketPath: path).get().eventLoop
            case .tcp(let host, let port):
                return try await bootstrap.channelOption(.tcpOption(.tcp_nodelay), value: 1)
                    .connect(host: host, port: port).get().eventLoop
            case .tls: throw RPCStatus.tlsUnavailable(address)
            }
        } catch let status as RPCStatus {
            throw status
        } catch {
            throw refusal(of: address, error)
        }
    }

    private static func refusal(of address: RPCAddress, _ error: any Error) -> RPCStatus {
        let what = "Couldn't reach an agent at \(address): \(error.sentence)."
        switch error.errorNumber {
        case ErrorNumber.permissionDenied, ErrorNumber.notPermitted:
            return RPCStatus(.permissionDenied, what + " Are you allowed to use the socket?")
        default:
            return RPCStatus(.unavailable, what + " Is drive-backup-agent running?")
        }
    }
}

extension RPCStatus {
    static func tlsUnavailable(_ address: RPCAddress) -> RPCStatus {
        RPCStatus(
            .unimplemented, "Couldn't use \(address): TLS is not available yet.",
            reason: "FIELD_UNIMPLEMENTED",
            subject: "address")
    }
}
