internal import BlockIO
internal import Glibc
internal import TestKit

@testable internal import NBD

/// A client that says what it likes, byte by byte.
final class RawClient: Sendable {
    struct Chunk: Equatable {
        /// Nil for a simple reply.
        var type: ChunkType?
        var isLast = true
        var cookie: UInt64
        /// Of a simple reply, or an error chunk.
        var error: UInt32 = 0
        var payload: [UInt8] = []
    }

    let socket: Socket
    private let engine = testThreads

    init(_ path: String) async throws {
        let descriptor = await testThreads.blocking { () -> Int32 in
            let descriptor = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            var address = sockaddr_un()
            address.sun_family = sa_family_t(AF_UNIX)
            withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
            let result = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
            return result == 0 ? descriptor : -errno
        }
        guard descriptor >= 0 else { throw TestKitError("Couldn't connect to \(path): error \(-descriptor)") }
        socket = Socket(descriptor)
    }

    /// Connects and gets through the handshake.
    static func open(
        _ path: String, _ name: String = "", structured: Bool = true, context: Bool = true
    ) async throws -> RawClient {
        let client = try await RawClient(path)
        try await client.greet()
        if structured {
            try await client.option(8)
            _ = try await client.optionReply()
            if context {
                try await client.option(10, string(name) + bytes(UInt32(1)) + string("base:allocation"))
                while try await client.optionReply().type != 1 {}
            }
        }
        try await client.option(7, string(name) + bytes(UInt16(0)))
        while true {
            let reply = try await client.optionReply()
            if reply.type == 1 { return client }
            if reply.type >= 0x8000_0000 { throw TestKitError("The server refused: \(reply)") }
        }
    }

    static func bytes(_ value: some FixedWidthInteger) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(bigEndian: value)
        return bytes
    }

    static func string(_ text: String) -> [UInt8] { bytes(UInt32(text.utf8.count)) + text.utf8 }

    func send(_ bytes: [UInt8]) async throws {
        let buffer = IOBuffer(count: bytes.count)
        buffer.bytes.copyBytes(from: bytes)
        let isSent = await engine.run {
            await ReplySender(socket, engine) {}.send(buffer.slice)
        }
        if !isSent { throw TestKitError("The server has hung up") }
    }

    /// Exactly `count` bytes; throws when the server hangs up before.
    func receive(_ count: Int) async throws -> [UInt8] {
        let buffer = IOBuffer(count: count)
        let got = await engine.run {
            var done = 0
            while done < count {
                let more = await engine.receive(
                    socket.descriptor, UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[done...]),
                    all: true)
                if more <= 0 { break }
                done += more
            }
            return done
        }
        guard got == count else { throw TestKitError("The server hung up after \(got) of \(count) bytes") }
        return Array(buffer.bytes)
    }

    /// Drops what comes until the server hangs up.
    func waitForEnd() async {
        let buffer = IOBuffer(count: 1 << 20)
        await engine.run { while await engine.receive(socket.descriptor, buffer.bytes, all: false) > 0 {} }
    }

    /// Tells the server that nothing more comes.
    func endSending() { _ = shutdown(socket.descriptor, Int32(SHUT_WR)) }

    func integer<Value: FixedWidthInteger>(_: Value.Type) async throws -> Value {
        try await receive(MemoryLayout<Value>.size).reduce(0) { ($0 << 8) | Value(truncatingIfNeeded: $1) }
    }

    // MARK: Handshake

    func greet(flags: UInt32 = 3) async throws {
        guard try await receive(18) == HandshakeMachine.greeting else {
            throw TestKitError("A strange greeting")
        }
        try await send(Self.bytes(flags))
    }

    func option(_ option: UInt32, _ data: [UInt8] = []) async throws {
        try await send(
            Self.bytes(NBDProtocol.optionMagic) + Self.bytes(option) + Self.bytes(UInt32(data.count)) + data)
    }

    func optionReply() async throws -> (option: UInt32, type: UInt32, data: [UInt8]) {
        guard try await integer(UInt64.self) == NBDProtocol.optionReplyMagic else {
            throw TestKitError("A strange reply to an option")
        }
        let option = try await integer(UInt32.self)
        let type = try await integer(UInt32.self)
        let length = try await integer(UInt32.self)
        return (option, type, try await receive(Int(length)))
    }

    // MARK: Transmission

    static func request(
        _ type: UInt16, cookie: UInt64 = 0, flags: UInt16 = 0, offset: UInt64 = 0, length: UInt32 = 0
    ) -> [UInt8] {
        bytes(NBDProtocol.requestMagic) + bytes(flags) + bytes(type) + bytes(cookie) + bytes(offset)
            + bytes(length)
    }

    /// The next message of the server. `length` is that of the data behind a simple reply without error.
    func reply(length: Int = 0) async throws -> Chunk {
        switch try await integer(UInt32.self) {
        case NBDProtocol.simpleReplyMagic:
            let error = try await integer(UInt32.self)
            let cookie = try await integer(UInt64.self)
            return Chunk(cookie: cookie, error: error, payload: error == 0 ? try await receive(length) : [])
        case NBDProtocol.structuredReplyMagic:
            let flags = try await integer(UInt16.self)
            let number = try await integer(UInt16.self)
            guard let type = ChunkType(rawValue: number) else {
                throw TestKitError("A chunk of type \(number)")
            }
            let cookie = try await integer(UInt64.self)
            let payload = try await receive(Int(try await integer(UInt32.self)))
            var chunk = Chunk(type: type, isLast: flags & 1 != 0, cookie: cookie, payload: payload)
            if type == .error { chunk.error = payload[..<4].reduce(0) { ($0 << 8) | UInt32($1) } }
            return chunk
        case let magic: throw TestKitError("A message of the server starts with \(magic)")
        }
    }

    /// Asks and takes the answer, which is one message.
    func ask(
        _ type: UInt16, cookie: UInt64 = 0, flags: UInt16 = 0, offset: UInt64 = 0, length: UInt32 = 0,
        payload: [UInt8] = [], answer: Int = 0
    ) async throws -> Chunk {
        try await send(
            Self.request(type, cookie: cookie, flags: flags, offset: offset, length: length) + payload)
        let chunk = try await reply(length: answer)
        guard chunk.cookie == cookie else {
            throw TestKitError("The cookie \(cookie) became \(chunk.cookie)")
        }
        return chunk
    }
}
