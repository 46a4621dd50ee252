import Foundation
import TestKit
import Testing

@testable import BlockIO

@Suite("Writing past the page cache", .serialized)
struct BypassTests {
    private static let size = 4 << 20
    private static let lock: HostFile.Lock = (holding: .all, unsharing: .all)

    private static func make(
        _ path: String, growable: Bool, direct: Bool = false, unit: UInt64 = 1, on engine: any IOEngine
    ) async throws -> HostFile {
        try Data(count: growable ? 0 : size).write(to: URL(fileURLWithPath: path))
        return try await HostFile.open(
            path, readOnly: false, growable: growable, direct: direct, leastUnit: unit, lock: lock, on: engine
        )
    }

    /// Of a file's writes.
    enum Way: CaseIterable {
        /// Large ones past the cache; the file has its length, or grows.
        case bypass, growingBypass
        /// All, and all reads.
        case direct
        /// As on a disk with large sectors.
        case largeUnits

        var isDirect: Bool { self == .direct || self == .largeUnits }
        static let possible = allCases.filter { !$0.isDirect || temporaryFilesTakeDirectTransfers }
    }

    /// Writes of all lengths and alignments, several at once, to parts of the file that no two of them share; what is there is
    /// read between them, and after all from outside.
    @Test(
        "large and small, aligned and not, what was written is what is there",
        arguments: EngineKind.allCases, Way.possible)
    func history(kind: EngineKind, way: Way) async throws {
        let seed = testSeed()
        try await onEngine(kind) { engine, directory in
            var random = SeededGenerator(seed)
            let path = directory.file("a.raw")
            let file = try await Self.make(
                path, growable: way == .growingBypass, direct: way.isDirect,
                unit: way == .largeUnits ? 4096 : 1,
                on: engine)
            await file.bypassCache()
            var model = [UInt8](repeating: 0, count: Self.size)
            for round in 0..<testRounds(40) {
                var writes: [(range: Range<Int>, bytes: IOSlice?)] = []
                var start = 0
                while start < Self.size, writes.count < 12 {
                    // Neighbours in one block must not lose each other's bytes.
                    let isNext = Bool.random(using: &random)
                    start += isNext ? 0 : Int.random(in: 0...2 << 17, using: &random) & Self.mask(&random)
                    let most = Bool.random(using: &random) ? 3 << 17 : 3000
                    let length = max(1, Int.random(in: 1...most, using: &random) & Self.mask(&random))
                    guard start + length <= Self.size else { break }
                    let range = start..<start + length
                    start += length
                    if Int.random(in: 0..<8, using: &random) == 0 {
                        writes.append((range, nil))
                        for place in range { model[place] = 0 }
                        continue
                    }
                    let shift = Bool.random(using: &random) ? 0 : Int.random(in: 1...600, using: &random)
                    let buffer = IOBuffer(count: shift + length)
                    let byte = UInt8.random(in: 1...255, using: &random)
                    for place in 0..<length {
                        buffer.bytes[shift + place] = byte &+ UInt8(truncatingIfNeeded: place >> 9)
                        model[range.lowerBound + place] = buffer.bytes[shift + place]
                    }
                    writes.append((range, buffer[shift..<shift + length]))
                }
                let failures = await withTaskGroup(of: BlockError?.self) { group in
                    for (range, bytes) in writes {
                        group.addTask(executorPreference: engine) {
                            let range = ByteRange(UInt64(range.lowerBound)..<UInt64(range.upperBound))
                            do throws(BlockError) {
                                if let bytes {
                                    try await file.write(range, from: bytes)
                                } else {
                                    try await file.writeZeroes(range, mayUnmap: true)
                                }
                                return nil
                            } catch {
                                return error
                            }
                        }
                    }
                    var failures: [BlockError] = []
                    for await case let failure? in group { failures.append(failure) }
                    return failures
                }
                #expect(failures.isEmpty, "seed \(seed), round \(round): \(failures)")
                let there = IOBuffer(count: Int(file.size))
                try await file.read(file.range, into: there.slice)
                let isSame = Data(there.bytes) == Data(model[..<there.count])
                #expect(isSame, "seed \(seed), round \(round)")
                if round % 5 == 0 { try await file.flush() }
            }
            let length = Int(file.size)
            try await file.flush()
            try await file.close()
            let content = try Data(contentsOf: URL(fileURLWithPath: path))
            let isKept = content == Data(model[..<length])
            #expect(isKept, "seed \(seed)")
        }
    }

    /// Some ranges are of whole blocks, some of sectors, some of anything.
    private static func mask(_ random: inout SeededGenerator) -> Int {
        [~4095, ~4095, ~511, ~0].randomElement(using: &random) ?? ~0
    }

    /// Where the kernel and the file system are known to be able to.
    @Test("what is large and aligned leaves nothing in the page cache, and what is short does")
    func cache() async throws {
        guard EngineKind.preferred() == .ring else { return }
        try await onEngine(.ring) { engine, directory in
            let path = directory.file("a.raw")
            let file = try await Self.make(path, growable: true, on: engine)
            try await file.setSize(UInt64(Self.size))
            await file.bypassCache()
            let system = try await runProcess("stat", ["--file-system", "--format=%T", path]).output
            let isKnown = system.hasPrefix("ext2/ext3") || system.hasPrefix("xfs")
            #expect(
                file.bypassesCache || !isKnown, "a file system that takes direct writes is not asked for any")
            guard file.bypassesCache else { return try await file.close() }
            let buffer = IOBuffer(count: 1 << 20)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            try await file.write(ByteRange(offset: 1 << 20, length: 1 << 20), from: buffer.slice)
            #expect(Self.cached(path) == [])
            try await file.write(ByteRange(offset: 3 << 20, length: 4096), from: buffer[0..<4096])
            #expect(Self.cached(path) == [768])
            try await file.close()
        }
    }

    @Test(
        "what is used past the page cache leaves nothing there, whatever its alignment",
        .enabled(if: temporaryFilesTakeDirectTransfers), arguments: EngineKind.allCases)
    func direct(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let path = directory.file("a.raw")
            let file = try await Self.make(path, growable: false, direct: true, on: engine)
            try #require(file.directUnit != nil)
            try await runProcess("sync", [path])
            let evict = open(path, O_RDONLY)
            posix_fadvise(evict, 0, 0, POSIX_FADV_DONTNEED)
            close(evict)
            #expect(Self.cached(path) == [])
            let buffer = IOBuffer(count: 1 << 20)
            for (offset, length) in [(0, 1 << 20), (5 << 18, 4096), (3 << 20, 100), (12_345, 77_777)] {
                let range = ByteRange(offset: UInt64(offset), length: UInt64(length))
                buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
                try await file.write(range, from: buffer[0..<length])
                buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0)
                #expect(!file.readAtOnce(range, into: buffer[0..<length]))
                #expect(!file.writeAtOnce(range, from: buffer[0..<length]))
                try await file.read(range, into: buffer[0..<length])
                let isThere = buffer[0..<length].bytes.allSatisfy { $0 == 7 }
                #expect(isThere, "\(range)")
            }
            try await file.writeZeroes(ByteRange(offset: 2_000_001, length: 100_000), mayUnmap: false)
            try await file.discard(ByteRange(offset: 3_000_001, length: 100_000))
            #expect(Self.cached(path) == [])
            try await file.close()
        }
    }

    /// The numbers of a file's pages that the page cache has.
    private static func cached(_ path: String) -> [Int] {
        let descriptor = open(path, O_RDONLY)
        defer { close(descriptor) }
        guard let map = mmap(nil, size, PROT_READ, MAP_SHARED, descriptor, 0), map != MAP_FAILED else {
            return [-1]
        }
        defer { munmap(map, size) }
        var pages = [UInt8](repeating: 0, count: size / 4096)
        guard mincore(map, size, &pages) == 0 else { return [-1] }
        return pages.indices.filter { pages[$0] & 1 != 0 }
    }

    @Test("where it is asked for by each write, the others leave what they write in the cache")
    func eachByItself() async throws {
        try await onEngine(.preferred()) { engine, directory in
            let path = directory.file("a.raw")
            let file = try await Self.make(path, growable: false, on: engine)
            await file.bypassCache(always: false)
            #expect(!file.bypassesCache)
            #expect(
                file.canWritePastCache || engine is ThreadsEngine || !temporaryFilesTakeDirectTransfers)
            let (cached, past) = (
                ByteRange(offset: 0, length: 1 << 20), ByteRange(offset: 2 << 20, length: 1 << 20)
            )
            let buffer = IOBuffer(count: 1 << 20)
            for (index, byte) in buffer.slice.bytes.indices.enumerated() {
                buffer.slice.bytes[byte] = UInt8(truncatingIfNeeded: index / 4096 + 1)
            }
            // What the file began with is to be in the cache no more.
            try await file.flush()
            let descriptor = open(path, O_RDONLY)
            posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED)
            close(descriptor)
            try await file.write(cached, from: buffer.slice)
            try await file.writePastCache(past, from: buffer.slice)
            let pages = Self.cached(path)
            #expect(Set(pages).isSuperset(of: 0..<256), "what is written is in the cache")
            if file.canWritePastCache {
                #expect(pages.allSatisfy { !(512..<768).contains($0) }, "what is written past it is not")
            }
            let read = IOBuffer(count: 1 << 20)
            for range in [cached, past] {
                try await file.read(range, into: read.slice)
                #expect(Array(read.slice.bytes) == Array(buffer.slice.bytes), "\(range)")
            }
            try await file.close()
        }
    }

    @Test("others are locked out until the second descriptor is closed, too")
    func locks() async throws {
        try await onEngine(.preferred()) { engine, directory in
            let path = directory.file("a.raw")
            let file = try await Self.make(path, growable: false, on: engine)
            await file.bypassCache()
            // Who has a request on its way keeps it so.
            let bypass = file.state.value.bypass
            try await file.close()
            if bypass != nil {
                let error = await #expect(throws: BlockError.self) {
                    _ = try await HostFile.open(path, readOnly: false, lock: Self.lock, on: engine)
                }
                #expect(error?.code == .locked)
            }
            withExtendedLifetime(bypass) {}
        }
        try await onEngine(.preferred()) { engine, directory in
            let path = directory.file("a.raw")
            let file = try await Self.make(path, growable: false, on: engine)
            await file.bypassCache()
            try await file.close()
            let again = try await HostFile.open(path, readOnly: false, lock: Self.lock, on: engine)
            try await again.close()
        }
    }

    @Test("what a ring holds open is open until the ring has ended")
    func hold() async throws {
        guard EngineKind.preferred() == .ring else { return }
        var ends: [Int32] = [-1, -1]
        try #require(
            socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
        let (near, far) = (ends[0], ends[1])
        defer { close(far) }
        let engine = try RingEngine(name: "holds", holding: near)
        close(near)
        var byte: UInt8 = 0
        let before = recv(far, &byte, 1, Int32(MSG_DONTWAIT))
        #expect(before == -1 && errno == EAGAIN, "the other side has read an end")
        await engine.shutDown()
        let after = recv(far, &byte, 1, 0)
        #expect(after == 0)
    }
}
