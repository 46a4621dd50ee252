internal import NIOCore
internal import NIOPosix

extension ChannelTransport {
    /// Puts what carries `connection` into a new channel's pipeline. A TLS handler would come first here.
    static func build(_ connection: any Connection, in channel: any Channel) throws {
        try channel.pipeline.syncOperations.addHandler(ChannelTransport(connection))
    }

    /// Connects a socket to `address` and lets it carry `connection`. Returns what runs tasks on its loop.
    static func connect(
        _ connection: any Connection, to address: RPCAddress, timeout: Duration
    ) async throws(RPCStatus) -> LoopExecutor {
        let bootstrap = ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .connectTimeout(.nanoseconds(max(1, Int64(0).adding(timeout))))
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let transport = ChannelTransport(connection, running: LoopExecutor(channel.eventLoop))
                    try channel.pipeline.syncOperations.addHandler(transport)
                }
            }
        do {
            let channel: any Channel
            switch address {
            case .unix(let path):
                channel = try await bootstrap.connect(unixDomainSocketPath: path).get()
            case .tcp(let host, let port):
                channel = try await bootstrap.channelOption(.tcpOption(.tcp_nodelay), value: 1)
                    .connect(host: host, port: port).get()
            case .tls: throw RPCStatus.tlsUnavailable(address)
            }
            return try await channel.eventLoop.submit {
                // Closed meanwhile, it has no handlers any more; then nothing arrives that would run tasks.
                let transport = try? channel.pipeline.syncOperations.handler(type: ChannelTransport.self)
                return transport?.executor ?? LoopExecutor(channel.eventLoop)
            }.get()
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
