internal import BlockIO
internal import Glibc
internal import TestKit
internal import Testing

@Suite("Sockets of engines")
struct SocketTests {
    /// Sends all of `parts` as a caller has to: what comes back short goes on.
    private static func sendAll(_ engine: any IOEngine, _ socket: Int32, _ buffers: [IOSlice]) async -> Bool {
        let parts = UnsafeMutableBufferPointer<iovec>.allocate(capacity: buffers.count)
        defer { parts.deallocate() }
        for (index, buffer) in buffers.enumerated() {
            parts[index] = iovec(iov_base: buffer.bytes.baseAddress, iov_len: buffer.count)
        }
        var first = 0
        while first < parts.count {
            var sent = await engine.send(socket, UnsafeMutableBufferPointer(rebasing: parts[first...]))
            guard sent > 0 else { return false }
            while first < parts.count, sent >= parts[first].iov_len {
                sent -= parts[first].iov_len
                first += 1
            }
            if sent > 0 {
                parts[first].iov_base = parts[first].iov_base.map { $0 + sent }
                parts[first].iov_len -= sent
            }
        }
        return true
    }

    @Test(
        "what is sent in parts arrives whole, however small the socket's buffer",
        arguments: EngineKind.allCases)
    func transfer(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "sockets")
        let pair = try SocketPair(bufferBytes: 4096)
        let source = IOBuffer(count: 3_000_001)
        for index in stride(from: 0, to: source.count, by: 7) {
            source.bytes[index] = UInt8(truncatingIfNeeded: index)
        }
        let slices = [
            source[0..<1], source[1..<1000], source[1000..<2_000_000], source[2_000_000..<3_000_001],
        ]
        let arrived = IOBuffer(count: source.count)
        await engine.run {
            async let isSent = Self.sendAll(engine, pair.near, slices)
            var done = 0
            while done < arrived.count {
                let rest = UnsafeMutableRawBufferPointer(rebasing: arrived.bytes[done...])
                let count = await engine.receive(pair.far, rest, all: done % 2 == 0)
                guard count > 0 else { break }
                done += count
            }
            #expect(await isSent)
            #expect(engine.isCurrent)
        }
        #expect(arrived.bytes.elementsEqual(source.bytes))
        await engine.shutDown()
    }

    @Test("a long send to one that reads nothing comes back short", arguments: EngineKind.allCases)
    func shortSend(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "sockets")
        let pair = try SocketPair(bufferBytes: 65536)
        let source = IOBuffer(count: 8 << 20)
        let part = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 1)
        defer { part.deallocate() }
        part[0] = iovec(iov_base: source.bytes.baseAddress, iov_len: source.count)
        // SAFETY: nobody else has it, and the engine is done with it when this returns.
        nonisolated(unsafe) let parts = part
        let sent = await engine.run { await engine.send(pair.near, parts) }
        #expect(sent > 0 && sent < source.count)
        await engine.shutDown()
    }

    @Test("shutdown(2) ends those who wait to receive, to send and to accept", arguments: EngineKind.allCases)
    func shutDown(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "sockets")
        let directory = try TemporaryDirectory()
        let waiting = try SocketPair()
        let full = try SocketPair()
        let listener = try Self.listen(at: directory.file("s"))
        let block = IOBuffer(count: 1 << 20)
        await engine.run {
            await withTaskGroup(of: Void.self) { group in
                let begun = EngineIsolated(0, engine: engine)
                group.addTask {
                    begun.value += 1
                    let small = IOBuffer(count: 16)
                    #expect(await engine.receive(waiting.near, small.bytes, all: true) == 0)
                }
                group.addTask {
                    begun.value += 1
                    while await Self.sendAll(engine, full.near, [block.slice]) {}
                }
                group.addTask {
                    begun.value += 1
                    #expect(await engine.accept(listener) < 0)
                }
                // All three have called the engine, and other things go on.
                while begun.value < 3 { await Task.yield() }
                _ = await engine.blocking { sched_yield() }
                for socket in [waiting.near, full.near, listener] { Glibc.shutdown(socket, Int32(SHUT_RDWR)) }
            }
        }
        close(listener)
        await engine.shutDown()
    }

    @Test("hundreds of connections that are silent hold up nobody", arguments: EngineKind.allCases)
    func idle(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "sockets")
        let directory = try TemporaryDirectory()
        let file = try ScratchFile(bytes: 1 << 16)
        let listener = try Self.listen(at: directory.file("s"))
        let count = 200
        await engine.run {
            await withTaskGroup(of: Void.self) { group in
                let accepted = EngineIsolated([Int32](), engine: engine)
                group.addTask {
                    while true {
                        let socket = Int32(await engine.accept(listener))
                        guard socket >= 0 else { break }
                        #expect(fcntl(socket, F_GETFD) & FD_CLOEXEC != 0)
                        accepted.value.append(socket)
                    }
                }
                let clients = await engine.blocking {
                    (0..<count).map { _ in Self.connect(to: directory.file("s")) }
                }
                while accepted.value.count < count { await Task.yield() }
                let sockets = accepted.value
                for socket in sockets {
                    group.addTask {
                        let buffer = IOBuffer(count: 16)
                        #expect(await engine.receive(socket, buffer.bytes, all: false) == 1)
                        close(socket)
                    }
                }
                for index in 0..<100 {
                    let buffer = IOBuffer(count: 512)
                    #expect(
                        await engine.read(file.descriptor, buffer.bytes, at: UInt64(index % 100) * 512) == 512
                    )
                }
                let byte = IOBuffer(count: 1)
                for client in clients.reversed() { #expect(await Self.sendAll(engine, client, [byte.slice])) }
                Glibc.shutdown(listener, Int32(SHUT_RDWR))
                await group.waitForAll()
                for client in clients { close(client) }
            }
        }
        close(listener)
        await engine.shutDown()
    }

    @Test("the end of a peer is told, not signalled", arguments: EngineKind.allCases)
    func gone(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "sockets")
        let pair = try SocketPair()
        Glibc.shutdown(pair.far, Int32(SHUT_RDWR))
        await engine.run {
            let buffer = IOBuffer(count: 1 << 20)
            #expect(await engine.receive(pair.near, buffer.bytes, all: false) == 0)
            // SIGPIPE would be the end of this process; the small one and the large one go different ways.
            for slice in [buffer[0..<1], buffer.slice] {
                let parts = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 1)
                defer { parts.deallocate() }
                parts[0] = iovec(iov_base: slice.bytes.baseAddress, iov_len: slice.count)
                #expect(await engine.send(pair.near, parts) == Int(-EPIPE))
            }
            #expect(await engine.receive(-1, buffer.bytes, all: false) == Int(-EBADF))
            #expect(await engine.accept(-1) == Int(-EBADF))
        }
        await engine.shutDown()
    }

    private static func address(_ path: String) -> sockaddr_un {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        return address
    }

    private static func listen(at path: String) throws -> Int32 {
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let listener = socket(AF_UNIX, kind, 0)
        var address = address(path)
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(result == 0 && Glibc.listen(listener, 256) == 0)
        return listener
    }

    private static func connect(to path: String) -> Int32 {
        let client = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var address = address(path)
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(client, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        #expect(result == 0)
        return client
    }
}
