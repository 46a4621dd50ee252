internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@Suite("Image locks")
struct ImageLockTests {
    private static let writer: HostFile.Lock = ([.consistentRead, .write], [.write, .resize])
    private static let reader: HostFile.Lock = ([.consistentRead], [.write, .resize])

    private static func make(_ directory: TemporaryDirectory) async throws -> String {
        let path = directory.file("a.raw")
        try await qemuImg(["create", "-q", "-f", "raw", path, "1M"])
        return path
    }

    private static func qemuIO(_ path: String, _ command: String, readOnly: Bool = false) async throws
        -> ProcessResult
    {
        try await runProcess("qemu-io", (readOnly ? ["-r"] : []) + ["-f", "raw", "-c", command, path])
    }

    @Test("two writers conflict, readers do not, and a closed file is free")
    func ours() async throws {
        try await onEngine(.preferred()) { engine, directory in
            let path = try await Self.make(directory)
            let first = try await HostFile.open(path, readOnly: false, lock: Self.writer, on: engine)
            await expect(.locked, "Couldn't lock \(path) for writing") { () async throws(BlockError) in
                _ = try await HostFile.open(path, readOnly: false, lock: Self.writer, on: engine)
            }
            await expect(.locked, "it is open for writing elsewhere") { () async throws(BlockError) in
                _ = try await HostFile.open(path, readOnly: true, lock: Self.reader, on: engine)
            }
            try await first.close()
            let second = try await HostFile.open(path, readOnly: true, lock: Self.reader, on: engine)
            let third = try await HostFile.open(path, readOnly: true, lock: Self.reader, on: engine)
            await expect(.locked, "where writing by others is not allowed") { () async throws(BlockError) in
                _ = try await HostFile.open(path, readOnly: false, lock: Self.writer, on: engine)
            }
            try await second.close()
            try await third.close()
            let fourth = try await HostFile.open(path, readOnly: false, lock: Self.writer, on: engine)
            try await fourth.close()
        }
    }

    @Test("a refused change leaves the lock as it was")
    func change() async throws {
        try await onEngine(.preferred()) { engine, directory in
            let path = try await Self.make(directory)
            let first = try await HostFile.open(path, readOnly: false, lock: Self.reader, on: engine)
            let second = try await HostFile.open(path, readOnly: true, lock: Self.reader, on: engine)
            await expect(.locked, "for writing") { () async throws(BlockError) in
                try await first.changeLock(holding: [.consistentRead, .write], unsharing: [.write, .resize])
            }
            // Still a reader, which others may be, too, and no writer.
            let third = try await HostFile.open(path, readOnly: true, lock: Self.reader, on: engine)
            try await third.close()
            try await second.close()
            try await first.changeLock(holding: [.consistentRead, .write], unsharing: [.write, .resize])
            await expect(.locked, "for writing elsewhere") { () async throws(BlockError) in
                _ = try await HostFile.open(path, readOnly: true, lock: Self.reader, on: engine)
            }
            try await first.changeLock(holding: [.consistentRead], unsharing: [])
            let fourth = try await HostFile.open(path, readOnly: false, lock: Self.writer, on: engine)
            try await fourth.close()
            try await first.close()
        }
    }

    @Test("qemu may read what we read, and write neither that nor what we write")
    func weHold() async throws {
        try await onEngine(.preferred()) { engine, directory in
            let path = try await Self.make(directory)
            let reader = try await HostFile.open(path, readOnly: true, lock: Self.reader, on: engine)
            let write = try await Self.qemuIO(path, "write -P 1 0 4096")
            #expect(write.status != 0)
            #expect((write.output + write.error).contains("lock"))
            #expect(try await Self.qemuIO(path, "read 0 4096", readOnly: true).status == 0)
            try await qemuImg(["info", path])
            try await reader.close()
            let writer = try await HostFile.open(path, readOnly: false, lock: Self.writer, on: engine)
            #expect(try await Self.qemuIO(path, "write -P 1 0 4096").status != 0)
            try await writer.close()
            #expect(try await Self.qemuIO(path, "write -P 1 0 4096").status == 0)
        }
    }

    @Test("a file that qemu writes is refused to us, until qemu is gone")
    func qemuHolds() async throws {
        try await onEngine(.preferred()) { engine, directory in
            let path = try await Self.make(directory)
            let qemu = try BackgroundProcess("qemu-io", ["-f", "raw", path])
            try await qemu.send("write -P 1 0 512")
            try await qemu.wait(for: "wrote 512/512")
            await expect(.locked, "virtual machine") { () async throws(BlockError) in
                _ = try await HostFile.open(path, readOnly: true, lock: Self.reader, on: engine)
            }
            await expect(.locked, "for writing") { () async throws(BlockError) in
                _ = try await HostFile.open(path, readOnly: false, lock: Self.writer, on: engine)
            }
            // A crash frees it as well.
            try await qemu.kill()
            let file = try await HostFile.open(path, readOnly: false, lock: Self.writer, on: engine)
            try await file.close()
        }
    }
}
