import DriveBackupWire
import Foundation
import Logging
import Synchronization
import Testing

@testable import DriveBackupRPC

@Suite("Sockets of a server")
struct ServerTests {
    private static func server(_ addresses: RPCAddress..., limits: RPCLimits = RPCLimits()) -> RPCServer {
        RPCServer(
            listen: addresses, router: TestService().router, limits: limits, logger: Logger(label: "test"))
    }

    private static func path() -> String { "/tmp/drive-backup-rpc-\(UUID().uuidString.prefix(8)).sock" }

    @Test("a socket file has mode 0660, is replaced when stale, and is an error when it answers")
    func socketFiles() async throws {
        let path = Self.path()
        let first = Self.server(.unix(path: path))
        try await first.bind()
        let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
        #expect(mode == 0o660)

        let second = Self.server(.unix(path: path))
        let error = await #expect(throws: RPCStatus.self) { try await second.bind() }
        #expect(error?.message.contains(path) == true)
        let connection = try await RPCConnection.connect(to: .unix(path: path))
        await connection.close()

        await first.shutDown(within: .zero)
        #expect(!FileManager.default.fileExists(atPath: path))

        // A file without a listener, as a killed agent leaves it.
        _ = try await SocketFile.bind(path)
        try await second.bind()
        let again = try await RPCConnection.connect(to: .unix(path: path))
        #expect(try await again.call(TestService.get, GetDriveRequest(id: "a")).id == "a")
        await again.close()
        await second.shutDown(within: .zero)
    }

    @Test("a file that is no socket stays, and so does another socket in our file's place")
    func foreignFiles() async throws {
        let path = Self.path()
        try Data("precious".utf8).write(to: URL(fileURLWithPath: path))
        let server = Self.server(.unix(path: path))
        await #expect(throws: RPCStatus.self) { try await server.bind() }
        #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == Data("precious".utf8))
        try FileManager.default.removeItem(atPath: path)

        try await server.bind()
        try FileManager.default.removeItem(atPath: path)
        try Data("precious".utf8).write(to: URL(fileURLWithPath: path))
        await server.shutDown(within: .zero)
        #expect(FileManager.default.fileExists(atPath: path))
        try FileManager.default.removeItem(atPath: path)
    }

    @Test("when one address fails, none is listened on")
    func allOrNone() async throws {
        let path = Self.path()
        let server = Self.server(.unix(path: path), .tls(host: "127.0.0.1", port: 0))
        let error = await #expect(throws: RPCStatus.self) { try await server.bind() }
        #expect(error?.message.contains("TLS is not available yet") == true)
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test("TCP is for loopback unless asked for otherwise")
    func remote() async throws {
        let error = await #expect(throws: RPCStatus.self) {
            try await Self.server(.tcp(host: "0.0.0.0", port: 0)).bind()
        }
        #expect(error?.message.contains("loopback") == true)
        var limits = RPCLimits()
        limits.allowsRemote = true
        let server = Self.server(.tcp(host: "0.0.0.0", port: 0), limits: limits)
        try await server.bind()
        await server.shutDown(within: .zero)
    }

    @Test("where nobody is, connecting says so and what to do")
    func nobody() async throws {
        let path = Self.path()
        let error = await #expect(throws: RPCStatus.self) {
            _ = try await RPCConnection.connect(to: .unix(path: path))
        }
        #expect(error?.code == .unavailable)
        #expect(
            error?.message
                == "Couldn't reach an agent at unix:\(path): No such file or directory. Is drive-backup-agent running?"
        )
        let stale = try await SocketFile.bind(path)
        let refused = await #expect(throws: RPCStatus.self) {
            _ = try await RPCConnection.connect(to: .unix(path: path))
        }
        #expect(refused?.code == .unavailable)
        #expect(refused?.message.contains("Connection refused") == true)
        await stale.file.remove()
        let port = await #expect(throws: RPCStatus.self) {
            _ = try await RPCConnection.connect(to: .tcp(host: "127.0.0.1", port: 1))
        }
        #expect(port?.message.contains("Connection refused") == true)
    }

    @Test("connections beyond the limit are told so")
    func tooMany() async throws {
        var limits = RPCLimits()
        limits.maxConnections = 2
        try await withServer(.unix, limits: limits) { running in
            let first = try await running.connect()
            let second = try await running.connect()
            // The GOAWAY comes with the HELLO or right after it.
            let error = await #expect(throws: RPCStatus.self) {
                let third = try await running.connect()
                while true { _ = try await third.call(TestService.get, GetDriveRequest()) }
            }
            #expect(error?.code == .unavailable)
            #expect(error?.message.contains("2 connections") == true)
            #expect(try await first.call(TestService.get, GetDriveRequest(id: "a")).id == "a")
            #expect(try await second.ping() > .zero)
        }
    }

    @Test("a server that is cancelled ends", arguments: Reach.allCases)
    func cancelled(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let task = Task { await running.server.run() }
            let call = Task { try await connection.call(TestService.hang, GetDriveRequest()) }
            await running.service.wait { $0.calls == 1 }
            task.cancel()
            await task.value
            let error = await #expect(throws: RPCStatus.self) { try await call.value }
            #expect(error?.code == .unavailable)
            await running.service.wait { $0.cancelled == 1 }
        }
    }

    @Test(
        "addresses are parsed as they are written",
        arguments: [
            ("unix:/a/b", RPCAddress.unix(path: "/a/b")), ("unix:///a/b", .unix(path: "/a/b")),
            ("unix:a", .unix(path: "a")),
            ("tcp://127.0.0.1:7000", .tcp(host: "127.0.0.1", port: 7000)),
            ("tcp://[::1]:1", .tcp(host: "::1", port: 1)),
            ("tls://host.example:65535", .tls(host: "host.example", port: 65535)),
        ])
    func addresses(text: String, address: RPCAddress) throws {
        #expect(try RPCAddress(parsing: text) == address)
        #expect(try RPCAddress(parsing: address.description) == address)
    }

    @Test(
        "what is no address is refused with a sentence",
        arguments: [
            "", "unix:", "unix://", "/a/b", "tcp:127.0.0.1:1", "tcp://", "tcp://host", "tcp://:1",
            "tcp://host:", "tcp://host:x",
            "tcp://host:65536", "tcp://host:-1", "tcp://::1:1", "tcp://[::1]", "tcp://[::1:1", "http://a:1",
            "tcp://host:99999999999999999999",
            "unix:/" + String(repeating: "a", count: 107), "unix:/a\0b",
        ])
    func badAddresses(text: String) throws {
        let error = #expect(throws: RPCStatus.self) { try RPCAddress(parsing: text) }
        #expect(error?.code == .invalidArgument)
        #expect(error?.message.hasSuffix(".") == true)
    }

    @Test("a status keeps what it says on the wire, and is cut to what fits")
    func statuses() throws {
        let status = RPCStatus(.notFound, "No é.", reason: "DRIVE_NOT_FOUND", subject: "vm\0")
        let back = try RPCStatus(Frames.Status.decode(status.encoded(limit: 1000)))
        #expect(back == status)
        #expect(back.reason == "DRIVE_NOT_FOUND")
        #expect(back.subject == "vm\u{FFFD}")
        for limit in 2...100 {
            let bytes = status.encoded(limit: limit)
            #expect(bytes.count <= limit)
            #expect(try RPCStatus(Frames.Status.decode(bytes)).code == .notFound)
        }
        #expect(RPCStatus(Frames.Status(code: 999)).code == .unknown)
    }
}
