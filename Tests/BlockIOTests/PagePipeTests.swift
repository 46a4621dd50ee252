internal import Foundation
internal import Glibc
internal import TestKit
internal import Testing

@testable internal import BlockIO

@Suite("Pages of the cache on their way to a socket", .enabled(if: temporaryFilesKeepPages))
struct PagePipeTests {
    private static let size = 2 << 20

    /// A file whose bytes are on the disk and in the cache.
    private static func make(_ directory: TemporaryDirectory, on engine: any IOEngine) async throws
        -> HostFile
    {
        let path = directory.file("a.raw")
        let content = Data(
            (0..<size / 8).flatMap { position in (0..<8).map { UInt8((position >> $0) & 255) } })
        try content.write(to: URL(fileURLWithPath: path))
        try await runProcess("sync", [path])
        return try await HostFile.open(path, readOnly: false, on: engine)
    }

    /// Leaves the cache without these bytes, and with all others, in folios of one page: larger ones leave it only as a whole.
    private static func evict(_ file: HostFile, _ missing: Range<Int>) {
        let descriptor = open(file.name, O_RDONLY)
        posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED)
        posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM)
        var byte: UInt8 = 0
        for page in stride(from: 0, to: size, by: 4096) where !missing.contains(page) {
            #expect(pread(descriptor, &byte, 1, page) == 1)
        }
        close(descriptor)
    }

    @Test("a page that is missing anywhere is noticed", arguments: EngineKind.allCases)
    func missing(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "pages")
        let directory = try TemporaryDirectory()
        let file = try await Self.make(directory, on: engine)
        let pipe = try #require(PagePipe())
        await engine.run {
            let whole = ByteRange(offset: 0, length: 1 << 20)
            #expect(file.hasCached(whole))
            Self.evict(file, 65536..<65536 + 4096 * 16)
            // The last byte is always there: to look for one that is not may bring it in (a read that does not wait starts to
            // read ahead).
            let parts: [(offset: UInt64, length: UInt64, isThere: Bool)] = [
                (0, 1 << 20, false), (0, 65536, true), (32_768, 200_000, false),
                (65536 + 4096 * 15, 4097, false), (65536 + 4096 * 16, 100_000, true), (65535, 1, true),
            ]
            for part in parts {
                let range = ByteRange(offset: part.offset, length: part.length)
                #expect(file.hasCached(range) == part.isThere, "\(range)")
                if !part.isThere { #expect(!file.fill(pipe, with: range) && pipe.count == 0, "\(range)") }
            }
        }
        try await engine.run { () async throws(BlockError) in try await file.close() }
        await engine.shutDown()
    }

    @Test("a socket takes what it has room for, and says when it has more", arguments: EngineKind.allCases)
    func sending(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "pages")
        let directory = try TemporaryDirectory()
        let file = try await Self.make(directory, on: engine)
        var ends: [Int32] = [-1, -1]
        try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
        let (near, far) = (ends[0], ends[1])
        let flags = fcntl(near, F_GETFL)
        let pipe = try #require(PagePipe())
        let range = ByteRange(offset: 12_345, length: 1_000_000)
        let arrived = IOBuffer(count: Int(range.length))
        await engine.run {
            #expect(file.fill(pipe, with: range) && pipe.count == Int(range.length))
            var (sent, done, waits) = (0, 0, 0)
            while sent < Int(range.length) {
                if let count = engine.sendAtOnce(near, from: pipe) {
                    #expect(count > 0)
                    guard count > 0 else { break }
                    sent += count
                    continue
                }
                waits += 1
                // So much has arrived, and makes room.
                async let ready = engine.waitForRoom(near)
                while done < sent {
                    let rest = UnsafeMutableRawBufferPointer(rebasing: arrived.bytes[done..<sent])
                    done += max(0, await engine.receive(far, rest, all: true))
                }
                #expect(await ready == 0)
            }
            while done < sent {
                let rest = UnsafeMutableRawBufferPointer(rebasing: arrived.bytes[done..<sent])
                done += max(0, await engine.receive(far, rest, all: true))
            }
            #expect(waits > 0, "a socket's buffer holds less")
            #expect(pipe.count == 0)
            // Others of its users wait for it as before.
            #expect(fcntl(near, F_GETFL) == flags)
            // Whose peer has gone takes nothing, and no signal ends the process.
            #expect(file.fill(pipe, with: range))
            // A process that another test is starting may have the descriptor, too, for a moment.
            shutdown(far, Int32(SHUT_RDWR))
            close(far)
            #expect(engine.sendAtOnce(near, from: pipe) == Int(-EPIPE))
            #expect(await engine.waitForRoom(near) == 0)
        }
        let expected = try Data(contentsOf: URL(fileURLWithPath: file.name))[12_345..<1_012_345]
        #expect(Data(arrived.bytes) == expected)
        close(near)
        try await engine.run { () async throws(BlockError) in try await file.close() }
        await engine.shutDown()
    }
}

/// Whether files of the temporary directory can do this at all.
private let temporaryFilesKeepPages: Bool = {
    let descriptor = open(NSTemporaryDirectory(), O_RDONLY | O_DIRECTORY)
    defer { close(descriptor) }
    return PagePipe.suits(descriptor)
}()
