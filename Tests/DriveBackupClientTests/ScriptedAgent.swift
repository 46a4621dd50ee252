import DriveBackupClient
import Foundation
import Logging

@testable import DriveBackupCLI

/// A server on a socket of its own whose handlers a test writes, and the command run against it.
enum ScriptedAgent {
    struct Run: Sendable {
        var status: ExitStatus
        var capture: Capture
    }

    /// Serves `router` while `body` runs.
    static func serve<Result: Sendable>(
        _ router: RPCRouter, at path: String = newPath(),
        _ body: @Sendable (RPCAddress) async throws -> Result
    ) async throws -> Result {
        let address = RPCAddress.unix(path: path)
        let server = RPCServer(
            listen: [address], router: router, logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        )
        try await server.bind()
        return try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { await server.run() }
            do {
                let result = try await body(address)
                await server.shutDown(within: .zero)
                return result
            } catch {
                await server.shutDown(within: .zero)
                throw error
            }
        }
    }

    /// Runs a command line against an agent with these handlers.
    static func run(_ line: String, _ router: RPCRouter) async throws -> Run {
        try await serve(router) { address in await run(line, at: address) }
    }

    static func run(_ line: String, at address: RPCAddress) async -> Run {
        let capture = Capture()
        let status = await CommandLineTool.run(
            line.split(separator: " ").map(String.init),
            surroundings: .test(["DRIVE_BACKUP_AGENT": address.description]), console: capture.console)
        return Run(status: status, capture: capture)
    }

    /// A path for a socket, short enough for one.
    static func newPath() -> String { "/tmp/dbc-\(UUID().uuidString.prefix(13)).sock" }
}

extension RPCRouter {
    /// A router with what `fill` puts into it.
    static func with(_ fill: (inout RPCRouter) -> Void) -> RPCRouter {
        var router = RPCRouter()
        fill(&router)
        return router
    }

    /// Starts that give these events, then end with `status`.
    static func starting(_ events: [JobEvent], then status: RPCStatus = .ok) -> RPCRouter {
        with { router in
            router.stream(BackupsMethods.start) { _, _, writer throws(RPCStatus) in
                for event in events { try await writer.write(event) }
                if status.code != .ok { throw status }
            }
        }
    }
}
