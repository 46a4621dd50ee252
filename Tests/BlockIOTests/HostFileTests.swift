internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@Suite("Host files", .serialized)
struct HostFileTests {
    @Test("holes are found and kept", arguments: EngineKind.allCases)
    func holes(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let path = directory.file("a.raw")
            try Data().write(to: URL(fileURLWithPath: path))
            #expect(truncate(path, 64 << 20) == 0)
            let file = try await HostFile.open(path, readOnly: false, on: engine)
            let all = try await file.extents(in: file.range)
            #expect(all == [Extent(file.range, isZero: true, isAllocated: true)])
            let data = ByteRange(offset: 1 << 20, length: 1 << 20)
            let buffer = IOBuffer(count: 1 << 20)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            try await file.write(data, from: buffer.slice)
            #expect(
                try await file.extents(in: file.range) == [
                    Extent(ByteRange(offset: 0, length: 1 << 20), isZero: true, isAllocated: true),
                    Extent(data, isZero: false, isAllocated: true),
                    Extent(ByteRange(UInt64(2 << 20)..<(64 << 20)), isZero: true, isAllocated: true),
                ])
            #expect(
                try await file.extents(in: ByteRange(offset: data.offset + 4096, length: 4096)) == [
                    Extent(
                        ByteRange(offset: data.offset + 4096, length: 4096), isZero: false, isAllocated: true)
                ])
            try await file.writeZeroes(data, mayUnmap: true)
            #expect(try await file.extents(in: file.range).allSatisfy(\.isZero))
            try await file.close()
        }
    }

    @Test("a file is cloned, or it cannot be and nothing has changed", arguments: EngineKind.allCases)
    func clone(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let size = 3 << 16 + 512
            let content = Data((0..<size).map { UInt8(truncatingIfNeeded: ($0 &* 31) >> 7) })
            let path = directory.file("source")
            try content.write(to: URL(fileURLWithPath: path))
            let identity = try #require(FileIdentity.of(path: path))
            let target = try await HostFile.create(directory.file("target"), on: engine)
            try await target.setSize(UInt64(size))
            let source = CloneSource(path: path, identity: identity)
            let part = ByteRange(1 << 16..<2 << 16)
            var isCloned = false
            do throws(BlockError) {
                // Up to the end, which is no block's.
                for range in [part, ByteRange(2 << 16..<UInt64(size))] {
                    try await target.clone(range, from: source)
                }
                isCloned = true
            } catch {
                #expect(error.code == .unsupported, "\(error)")
            }
            let before = try Data(contentsOf: URL(fileURLWithPath: target.name))
            #expect(before == (isCloned ? Data(count: 1 << 16) + content[(1 << 16)...] : Data(count: size)))
            // Another file has the name, or none has it.
            try FileManager.default.moveItem(atPath: path, toPath: directory.file("moved"))
            await expect(.unsupported, "No such file") { () async throws(BlockError) in
                try await target.clone(part, from: source)
            }
            try Data(count: size).write(to: URL(fileURLWithPath: path))
            await expect(.unsupported, "another file") { () async throws(BlockError) in
                try await target.clone(part, from: source)
            }
            #expect(mkfifo(directory.file("fifo"), 0o600) == 0)
            await expect(.unsupported, "another file") { () async throws(BlockError) in
                try await target.clone(
                    part, from: CloneSource(path: directory.file("fifo"), identity: identity))
            }
            #expect(try Data(contentsOf: URL(fileURLWithPath: target.name)) == before)
            try await target.close()
        }
    }

    @Test("a missing file, a directory and a FIFO are refused in a sentence")
    func refusals() async throws {
        try await onEngine(.preferred()) { engine, directory in
            let missing = directory.file("none")
            await expect(.notFound, "Couldn't open \(missing): No such file or directory") {
                () async throws(BlockError) in
                _ = try await HostFile.open(missing, readOnly: true, on: engine)
            }
            await expect(.unsupported, "a directory, not a regular file") { () async throws(BlockError) in
                _ = try await HostFile.open(directory.path, readOnly: true, on: engine)
            }
            let fifo = directory.file("fifo")
            #expect(mkfifo(fifo, 0o600) == 0)
            await expect(.unsupported, "a FIFO") { () async throws(BlockError) in
                _ = try await HostFile.open(fifo, readOnly: true, on: engine)
            }
            await expect(.invalid, "NUL") { () async throws(BlockError) in
                _ = try await HostFile.open("/tmp/a\0b", readOnly: true, on: engine)
            }
            await expect(.unsupported, "a character device") { () async throws(BlockError) in
                _ = try await HostFile.open("/dev/null", readOnly: true, on: engine)
            }
            var ends: [Int32] = [-1, -1]
            let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
            #expect(socketpair(AF_UNIX, kind, 0, &ends) == 0)
            let adopted = ends[0]
            await expect(.unsupported, "a socket") { () async throws(BlockError) in
                _ = try await HostFile(adopting: adopted, name: "socket", readOnly: true, engine: engine)
            }
            // It was closed with the error, which the other end sees.
            var byte: UInt8 = 0
            #expect(read(ends[1], &byte, 1) == 0)
            close(ends[1])
        }
    }

    @Test("a request to a file that is closed meets no other file", arguments: EngineKind.allCases)
    func late(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let old = Data(repeating: 1, count: 4096)
            let new = Data(repeating: 2, count: 4096)
            try old.write(to: URL(fileURLWithPath: directory.file("old")))
            let closed = try await HostFile.open(directory.file("old"), readOnly: false, on: engine)
            try await closed.close()
            // They take the numbers that are free.
            var others: [HostFile] = []
            for name in ["a", "b", "c"] {
                try new.write(to: URL(fileURLWithPath: directory.file(name)))
                others.append(try await HostFile.open(directory.file(name), readOnly: false, on: engine))
            }
            let buffer = IOBuffer(count: 4096)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 3)
            #expect(others.allSatisfy { $0.descriptor != closed.descriptor })
            #expect(!closed.readAtOnce(closed.range, into: buffer.slice))
            #expect(!closed.writeAtOnce(closed.range, from: buffer.slice))
            await #expect(throws: BlockError.self) {
                try await closed.read(closed.range, into: buffer.slice)
            }
            await #expect(throws: BlockError.self) {
                try await closed.write(closed.range, from: buffer.slice)
            }
            #expect(buffer.bytes.allSatisfy { $0 == 3 })
            for file in others {
                try await file.close()
                #expect(try Data(contentsOf: URL(fileURLWithPath: file.name)) == new)
            }
            #expect(try Data(contentsOf: URL(fileURLWithPath: closed.name)) == old)
        }
    }

    @Test("a file that is closed can be locked by others, and its number is free with the last user")
    func vacated() async throws {
        try await onEngine(.threads) { engine, directory in
            try Data(count: 512).write(to: URL(fileURLWithPath: directory.file("a")))
            let lock: HostFile.Lock = ([.consistentRead, .write], [.write, .resize])
            var numbers: Set<Int32> = []
            for _ in 0..<500 {
                let first = try await HostFile.open(
                    directory.file("a"), readOnly: false, lock: lock, on: engine)
                try await first.close()
                // While the first is still there.
                let second = try await HostFile.open(
                    directory.file("a"), readOnly: false, lock: lock, on: engine)
                try await second.close()
                #expect(first.descriptor != second.descriptor)
                numbers.formUnion([first.descriptor, second.descriptor])
            }
            // Other tests have files, too, and take some of the numbers for a while.
            #expect(numbers.count < 500)
        }
    }

    @Test("reading what somebody has cut off is an error, not zeroes", arguments: EngineKind.allCases)
    func shrunk(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let path = directory.file("a.raw")
            try Data(count: 100_000).write(to: URL(fileURLWithPath: path))
            let file = try await HostFile.open(path, readOnly: true, on: engine)
            #expect(truncate(path, 5000) == 0)
            let range = ByteRange(offset: 4096, length: 8192)
            await expect(.inputOutput, "Couldn't read 8192 bytes at offset 4096 of \(path)") {
                () async throws(BlockError) in try await file.read(range, into: IOBuffer(count: 8192).slice)
            }
            await expect(.inputOutput, "shorter") { () async throws(BlockError) in
                _ = try await file.extents(in: ByteRange(offset: 50_000, length: 10_000))
            }
            try await file.close()
        }
    }

    @Test("a growable file grows, and its size with it", arguments: EngineKind.allCases)
    func grows(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let path = directory.file("a")
            try Data().write(to: URL(fileURLWithPath: path))
            let file = try await HostFile.open(path, readOnly: false, growable: true, on: engine)
            let buffer = IOBuffer(count: 10)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 3)
            try await file.write(ByteRange(offset: 5000, length: 10), from: buffer.slice)
            #expect(file.size == 5010)
            try await file.writeZeroes(ByteRange(offset: 9000, length: 70_000), mayUnmap: true)
            #expect(file.size == 79_000)
            // The hole belongs to the file, too.
            try await file.read(ByteRange(offset: 9000, length: 70_000), into: IOBuffer(count: 70_000).slice)
            try await file.writeZeroes(ByteRange(offset: 80_000, length: 1001), mayUnmap: false)
            #expect(file.size == 81_001)
            try await file.setSize(6000)
            #expect(file.size == 6000)
            try await file.flush()
            try await file.close()
            var expected = [UInt8](repeating: 0, count: 6000)
            expected.replaceSubrange(5000..<5010, with: [UInt8](repeating: 3, count: 10))
            #expect(try [UInt8](Data(contentsOf: URL(fileURLWithPath: path))) == expected)
        }
    }

    @Test("an error of the file system names side, place and reason", arguments: EngineKind.allCases)
    func fullFile(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let path = directory.file("a")
            try Data().write(to: URL(fileURLWithPath: path))
            let file = try await HostFile.open(path, readOnly: false, growable: true, on: engine)
            // Beyond what any file system stores: EFBIG, which is a kind of "no space".
            let range = ByteRange(offset: 1 << 62, length: 4096)
            await expect(
                .noSpace, "Couldn't write 4096 bytes at offset \(range.offset) of \(path): File too large"
            ) {
                () async throws(BlockError) in try await file.write(range, from: IOBuffer(count: 4096).slice)
            }
            try await file.close()
        }
    }

    @Test(
        "zeroes are written where the file system has no better way, however many",
        arguments: EngineKind.allCases)
    func writtenZeroes(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let path = directory.file("a")
            try Data(repeating: 7, count: 1_000_003).write(to: URL(fileURLWithPath: path))
            let engine = FaultyEngine(engine, .allocatesNothing)
            let file = try await HostFile.open(path, readOnly: false, on: engine)
            try await file.writeZeroes(ByteRange(offset: 1, length: 1_000_001), mayUnmap: true)
            try await file.discard(file.range)
            try await file.close()
            let expected = Data([7]) + Data(count: 1_000_001) + Data([7])
            #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == expected)
        }
    }

    @Test("write-back can be started and waited for", arguments: EngineKind.allCases)
    func writeback(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let path = directory.file("a")
            try Data(count: 1 << 20).write(to: URL(fileURLWithPath: path))
            let file = try await HostFile.open(path, readOnly: false, on: engine)
            try await file.startWriteback(file.range)
            try await file.waitForWriteback(file.range)
            if let unwritten = file.unwrittenPages(file.range) {
                #expect(unwritten == 0)
                // Somebody may write it back at once, but not every time.
                var mostUnwritten = 0
                let buffer = IOBuffer(count: 65536)
                for _ in 0..<100 where mostUnwritten < 16 {
                    try await file.write(ByteRange(offset: 65536, length: 65536), from: buffer.slice)
                    mostUnwritten = max(mostUnwritten, file.unwrittenPages(file.range) ?? 0)
                }
                #expect(mostUnwritten >= 65536 / Int(getpagesize()))
            }
            #expect(file.writebackFailure() == nil)
            try await file.startWriteback(ByteRange(offset: 5, length: 0))
            try await file.startWriteback(ByteRange(offset: 0, length: 3 << 30))
            try await file.flush()
            try await file.close()
        }
    }

    @Test("once a flush has failed no later one succeeds")
    func lostData() async throws {
        let inner = ThreadsEngine(name: "inner")
        let engine = FaultyEngine(inner, .failsFirstFlush)
        let directory = try TemporaryDirectory()
        let path = directory.file("a")
        try Data(count: 4096).write(to: URL(fileURLWithPath: path))
        let opened: Result<HostFile, BlockError> = await inner.run {
            do throws(BlockError) {
                return .success(try await HostFile.open(path, readOnly: false, on: engine))
            } catch { return .failure(error) }
        }
        let file = try opened.get()
        await inner.run {
            await expect(.dataLost, "Couldn't flush \(path): Input/output error") {
                () async throws(BlockError) in try await file.flush()
            }
            for _ in 0..<2 {
                await expect(.dataLost, "a previous flush failed") {
                    () async throws(BlockError) in try await file.flush()
                }
            }
            await expect(.dataLost, "a previous flush failed") { () async throws(BlockError) in
                try await file.waitForWriteback(file.range)
            }
        }
        await inner.shutDown()
    }

    @Test("of flushes at once none succeeds whose data was lost")
    func lostDataOfManyFlushes() async throws {
        try await withFaulty(.failsFirstFlushLate) { file, _ in
            let failures = await flushes(of: file, count: 8)
            #expect(failures.count == 8)
            #expect(failures.allSatisfy { $0.code == .dataLost })
        }
    }

    @Test("flushes that come while one is on its way share the next one, which begins after they came")
    func sharedFlushes() async throws {
        try await withFaulty(.transfersShort) { file, engine in
            #expect(await flushes(of: file, count: 50).isEmpty)
            #expect(await engine.run { engine.calls.value } == 2)
            #expect(await flushes(of: file, count: 1).isEmpty)
            #expect(await engine.run { engine.calls.value } == 3)
        }
    }

    /// Opens a file of 4 KiB on an engine with that fault.
    private func withFaulty(
        _ fault: FaultyEngine.Fault, _ body: (HostFile, FaultyEngine) async throws -> Void
    ) async throws {
        let inner = ThreadsEngine(name: "inner")
        let engine = FaultyEngine(inner, fault)
        let directory = try TemporaryDirectory()
        let path = directory.file("a")
        try Data(count: 4096).write(to: URL(fileURLWithPath: path))
        let opened: Result<HostFile, BlockError> = await inner.run {
            do throws(BlockError) {
                return .success(try await HostFile.open(path, readOnly: false, on: engine))
            } catch { return .failure(error) }
        }
        try await body(try opened.get(), engine)
        await inner.shutDown()
    }

    /// The errors of so many flushes at once.
    private func flushes(of file: HostFile, count: Int) async -> [BlockError] {
        await file.engine.run {
            await withTaskGroup(of: BlockError?.self) { group in
                for _ in 0..<count {
                    group.addTask(executorPreference: file.engine) {
                        do throws(BlockError) { try await file.flush() } catch { return error }
                        return nil
                    }
                }
                var errors: [BlockError] = []
                for await case let error? in group { errors.append(error) }
                return errors
            }
        }
    }

    @Test("links and other descriptors have the identity of their file")
    func identity() async throws {
        try await onEngine(.preferred()) { engine, directory in
            let (a, b, c) = (directory.file("a"), directory.file("b"), directory.file("c"))
            try Data(count: 10).write(to: URL(fileURLWithPath: a))
            try Data(count: 10).write(to: URL(fileURLWithPath: c))
            #expect(link(a, b) == 0)
            let first = try await HostFile.open(a, readOnly: true, on: engine)
            let second = try await HostFile.open(b, readOnly: true, on: engine)
            let third = try await HostFile.open(c, readOnly: true, on: engine)
            #expect(first.identity == second.identity)
            #expect(first.identity != third.identity)
        }
    }
}

/// Runs `body` on an engine of that kind with a directory of its own.
func onEngine(
    _ kind: EngineKind, _ body: @escaping @Sendable (any IOEngine, TemporaryDirectory) async throws -> Void
) async throws {
    let engine = try kind.makeEngine(name: "test")
    let directory = try TemporaryDirectory()
    let result: Result<Void, any Error> = await engine.run {
        do {
            try await body(engine, directory)
            return .success(())
        } catch {
            return .failure(error)
        }
    }
    await engine.shutDown()
    try result.get()
}

/// Expects an error of that code whose sentence contains `text`.
func expect(
    _ code: BlockError.Code, _ text: String, sourceLocation: SourceLocation = #_sourceLocation,
    _ body: () async throws(BlockError) -> Void
) async {
    do {
        try await body()
        Issue.record("nothing failed", sourceLocation: sourceLocation)
    } catch {
        #expect(error.code == code, sourceLocation: sourceLocation)
        #expect(error.message.contains(text), sourceLocation: sourceLocation)
    }
}
