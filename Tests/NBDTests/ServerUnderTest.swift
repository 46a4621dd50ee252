internal import BlockIO
internal import Foundation
internal import TestKit

@testable internal import NBD

/// A server on a Unix socket with exports, on an engine of its own.
final class ServerUnderTest: Sendable {
    let directory: TemporaryDirectory
    let engine: any IOEngine
    let server: NBDServer
    let said: Locked<[String]>

    static func start(
        _ kind: EngineKind = .preferred(), limits: NBDLimits = .patient, address: NBDAddress? = nil
    ) async throws -> ServerUnderTest {
        let directory = try TemporaryDirectory()
        let engine = try kind.makeEngine(name: "nbd")
        let said = Locked<[String]>([])
        let server = try await NBDServer(
            listening: address ?? .unix(path: directory.file("s")), engine: engine, limits: limits
        ) { sentence in said.withLock { $0.append(sentence) } }
        return ServerUnderTest(directory, engine, server, said)
    }

    private init(
        _ directory: TemporaryDirectory, _ engine: any IOEngine, _ server: NBDServer, _ said: Locked<[String]>
    ) {
        self.directory = directory
        self.engine = engine
        self.server = server
        self.said = said
    }

    var path: String { directory.file("s") }

    func uri(_ name: String = "") -> String {
        switch server.address {
        case .unix(let path): "nbd+unix:///\(name)?socket=\(path)"
        case .tcp(_, let port): "nbd://127.0.0.1:\(port)/\(name)"
        }
    }

    /// A file of `bytes` zeroes, exported.
    func addFile(_ name: String, bytes: UInt64, isReadOnly: Bool = false) async throws -> HostFile {
        let path = directory.file("\(name).raw")
        guard FileManager.default.createFile(atPath: path, contents: nil), truncate(path, Int(bytes)) == 0
        else {
            throw TestKitError("Couldn't make \(path)")
        }
        let file = try await HostFile.open(path, readOnly: isReadOnly, on: engine)
        try server.add(
            NBDExport(name: name, description: "the file \(name)", device: file, isReadOnly: isReadOnly))
        return file
    }

    /// A simulated disk, exported.
    func addDisk(_ name: String, bytes: UInt64, isReadOnly: Bool = false) throws -> SimDisk {
        let disk = SimDisk(size: bytes, engine: engine, name: name)
        try server.add(NBDExport(name: name, device: disk, isReadOnly: isReadOnly))
        return disk
    }

    /// Ends server and engine; throws when requests are left.
    func stop() async throws {
        guard await server.shutDown(within: .seconds(60)) else { throw TestKitError("requests were left") }
        await engine.shutDown()
    }
}

/// Runs a program and throws with what it said unless it succeeds.
@discardableResult
func expectSuccess(_ executable: String, _ arguments: [String], input: String = "") async throws -> String {
    let result = try await runProcess(executable, arguments, input: input)
    guard result.status == 0 else {
        throw TestKitError(
            "\(executable) \(arguments) exited with \(result.status): \(result.output)\(result.error)")
    }
    return result.output
}

extension NBDLimits {
    /// The clock plays no part: a machine may be as busy as it likes.
    static let patient = NBDLimits(handshake: .seconds(3600), stall: .seconds(3600), farewell: .seconds(3600))
}
