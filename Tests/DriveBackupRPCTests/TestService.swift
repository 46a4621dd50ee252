import DriveBackupWire
import Foundation
import Logging
import Synchronization
import Testing

@testable import DriveBackupRPC

/// A server's methods for tests. They borrow names and messages of the real services.
final class TestService: Sendable {
    static let get = RPCMethod<GetDriveRequest, Drive>("test.Service/Get", isServerStreaming: false)
    static let echo = RPCMethod<AddDriveRequest, Drive>("test.Service/Echo", isServerStreaming: false)
    static let fail = RPCMethod<GetDriveRequest, Drive>("test.Service/Fail", isServerStreaming: false)
    static let hang = RPCMethod<GetDriveRequest, Drive>("test.Service/Hang", isServerStreaming: false)
    static let count = RPCMethod<GetDriveRequest, Drive>("test.Service/Count", isServerStreaming: true)
    static let page = RPCMethod<GetDriveRequest, Drive>("test.Service/Page", isServerStreaming: true)
    static let endless = RPCMethod<GetDriveRequest, Drive>("test.Service/Endless", isServerStreaming: true)
    static let start = RPCMethod<BackupRequest, JobEvent>("test.Service/Start", isServerStreaming: true)

    struct Seen {
        var calls = 0
        var cancelled = 0
        var written = 0
        var contexts: [RPCContext] = []
        var requests: [BackupRequest] = []
    }

    let seen = Mutex(Seen())
    private let changes = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))

    /// Waits until `condition` holds of what the handlers have seen.
    func wait(until condition: (borrowing Seen) -> Bool) async {
        if seen.withLock({ condition($0) }) { return }
        for await _ in changes.stream where seen.withLock({ condition($0) }) { return }
    }

    private func note(_ change: (inout Seen) -> Void) {
        seen.withLock { change(&$0) }
        changes.continuation.yield()
    }

    var router: RPCRouter {
        var router = RPCRouter()
        router.unary(Self.get) { request, context in
            self.note {
                $0.calls += 1; $0.contexts.append(context)
            }
            return Drive(id: request.id)
        }
        router.unary(Self.echo) { request, _ in Drive(id: request.id, file: request.file) }
        router.unary(Self.fail) { (request, _) async throws(RPCStatus) -> Drive in
            throw RPCStatus(
                .notFound, "There is no drive \(request.id).", reason: "DRIVE_NOT_FOUND", subject: request.id)
        }
        router.unary(Self.hang) { (_, _) async throws(RPCStatus) -> Drive in
            self.note { $0.calls += 1 }
            await Self.untilCancelled()
            self.note { $0.cancelled += 1 }
            throw RPCStatus(.cancelled, "The handler was cancelled.")
        }
        router.stream(Self.count) { (request, _, writer) async throws(RPCStatus) in
            for number in 0..<(Int(request.id) ?? 0) { try await writer.write(Drive(id: "\(number)")) }
        }
        router.stream(Self.page) { (request, _, writer) async throws(RPCStatus) in
            let lengths = request.id.split(separator: ",").map { Int($0) ?? 0 }
            try await writer.write(
                contentsOf: lengths.enumerated().map { number, length in
                    Drive(id: "\(number)", file: String(repeating: "x", count: length))
                })
        }
        router.stream(Self.endless) { (request, _, writer) async throws(RPCStatus) in
            self.note { $0.calls += 1 }
            let drive = Drive(id: request.id, file: String(repeating: "x", count: 1000))
            do throws(RPCStatus) {
                while true {
                    try await writer.write(drive)
                    self.note { $0.written += 1 }
                }
            } catch {
                self.note { $0.cancelled += 1 }
                throw error
            }
        }
        router.stream(Self.start) { (request, _, _) async throws(RPCStatus) in
            self.note { $0.requests.append(request) }
        }
        return router
    }

    private static func untilCancelled() async {
        let (stream, _) = AsyncStream.makeStream(of: Void.self)
        for await _ in stream {}
    }
}

/// The ways in which a client reaches a server.
enum Reach: String, CaseIterable, CustomTestStringConvertible {
    case inProcess, unix, tcp

    var testDescription: String { rawValue }
}

/// A server that runs, and what is needed to end it.
struct Running {
    let service: TestService
    let server: RPCServer
    let reach: Reach
    let limits: RPCLimits

    func connect() async throws -> RPCConnection {
        switch reach {
        case .inProcess: try await server.connectInProcess(peer: RPCPeer(transport: .inProcess))
        case .unix, .tcp:
            try await RPCConnection.connect(to: #require(server.addresses.first), limits: limits)
        }
    }
}

/// Runs `body` with a server, and ends it.
func withServer(
    _ reach: Reach, limits: RPCLimits = RPCLimits(), _ body: (Running) async throws -> Void
) async throws {
    let service = TestService()
    var listen: [RPCAddress] = []
    let path = "/tmp/drive-backup-rpc-\(UUID().uuidString.prefix(8)).sock"
    switch reach {
    case .inProcess: break
    case .unix: listen = [.unix(path: path)]
    case .tcp: listen = [.tcp(host: "127.0.0.1", port: 0)]
    }
    let server = RPCServer(
        listen: listen, router: service.router, limits: limits, logger: Logger(label: "test"))
    try await server.bind()
    async let running: Void = server.run()
    do {
        try await body(Running(service: service, server: server, reach: reach, limits: limits))
    } catch {
        await server.shutDown(within: .zero)
        throw error
    }
    await server.shutDown(within: .zero)
    await running
}
