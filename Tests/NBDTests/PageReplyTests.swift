internal import BlockIO
internal import Foundation
internal import Glibc
internal import TestKit
internal import Testing

@testable internal import NBD

/// A file that counts how often its pages went into a pipe, how often they could not, and how often it said that they are there
/// and then that they are not, as when they leave the cache in between.
private final class CountingFile: DiskAbove {
    let file: HostFile
    var below: any BlockDevice { file }
    let counts = Locked((filled: 0, refused: 0, denied: 0))
    /// How many of the next `fill`s are refused, which may be of other ranges.
    private let denials = Locked((left: 0, asked: 0))

    init(_ file: HostFile) { self.file = file }

    var fillsPipes: Bool { file.fillsPipes }

    func hasCached(_ range: ByteRange) -> Bool {
        guard file.hasCached(range) else { return false }
        denials.withLock { denials in
            denials.asked += 1
            if denials.asked % 3 == 0 { denials.left += 1 }
        }
        return true
    }

    func fill(_ pipe: PagePipe, with range: ByteRange) -> Bool {
        let isDenied = denials.withLock { denials in
            guard denials.left > 0 else { return false }
            denials.left -= 1
            return true
        }
        guard !isDenied else {
            counts.withLock { $0.denied += 1 }
            return false
        }
        let isFilled = file.fill(pipe, with: range)
        counts.withLock { if isFilled { $0.filled += 1 } else { $0.refused += 1 } }
        return isFilled
    }

    func zeroesQuickly(mayUnmap: Bool) -> Bool { file.zeroesQuickly(mayUnmap: mayUnmap) }
}

@Suite("Long reads that are answered with pages of the cache")
struct PageReplyTests {
    private static let read: UInt16 = 0, write: UInt16 = 1, flush: UInt16 = 3
    /// Its last page is one in part.
    private static let size = (6 << 20) + 4096 + 512

    private static func export(_ test: ServerUnderTest, _ name: String) async throws -> CountingFile {
        let path = test.directory.file("\(name).raw")
        guard FileManager.default.createFile(atPath: path, contents: nil), truncate(path, Self.size) == 0
        else {
            throw TestKitError("Couldn't make \(path)")
        }
        let file = CountingFile(try await HostFile.open(path, readOnly: false, on: test.engine))
        try test.server.add(NBDExport(name: name, device: file, isReadOnly: false))
        return file
    }

    /// Of any kind: short and long, whole pages and parts, more than the pipe holds, up to the end.
    private static func someRange(_ random: inout SeededGenerator) -> Range<Int> {
        let length =
            switch Int.random(in: 0..<6, using: &random) {
            case 0: Int.random(in: 1...100_000, using: &random)
            case 1: 64 << 10
            case 2: (64 << 10) + 1
            case 3: 1 << 20
            case 4: (1 << 20) + Int.random(in: 1...700_000, using: &random)
            default: Int.random(in: 65_537...1 << 20, using: &random)
            }
        let offset = Int.random(in: 0...Self.size - length, using: &random)
        switch Int.random(in: 0..<4, using: &random) {
        case 0: return offset..<offset + length
        case 1: return Self.size - length..<Self.size
        default: return offset & ~4095..<offset & ~4095 + length
        }
    }

    @Test(
        "they tell what is there, with what was written last, in the cache or not",
        arguments: EngineKind.allCases, [true, false])
    func history(kind: EngineKind, structured: Bool) async throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let test = try await ServerUnderTest.start(kind)
        let file = try await Self.export(test, "a")
        // Compared and copied as `Data`, which is quick without optimization, too.
        var model = Data(count: Self.size)
        let pattern = Data((0..<(2 << 20) + 251).map { UInt8(truncatingIfNeeded: $0 % 251) })
        let client = try await RawClient.open(test.path, "a", structured: structured)
        for round in 0..<30 {
            let changed = Self.someRange(&random)
            let start = Int.random(in: 0..<251, using: &random)
            model.replaceSubrange(changed, with: pattern[start..<start + changed.count])
            let answer = try await client.ask(
                Self.write, offset: UInt64(changed.lowerBound), length: UInt32(changed.count),
                payload: [UInt8](model[changed]))
            #expect(answer.error == 0)
            if Int.random(in: 0..<3, using: &random) == 0 {
                _ = try await client.ask(Self.flush)
                let evicted = Self.someRange(&random)
                let descriptor = open(file.name, O_RDONLY)
                posix_fadvise(descriptor, evicted.lowerBound, evicted.count, POSIX_FADV_DONTNEED)
                close(descriptor)
            }
            // All at once, more than the socket holds.
            let ranges = (0..<Int.random(in: 10...40, using: &random)).map { _ in Self.someRange(&random) }
            try await client.send(
                ranges.enumerated().flatMap { index, range in
                    RawClient.request(
                        Self.read, cookie: UInt64(index), offset: UInt64(range.lowerBound),
                        length: UInt32(range.count))
                })
            var missing = Set(ranges.indices)
            while !missing.isEmpty {
                let data: Data
                let index: Int
                if structured {
                    let chunk = try await client.reply()
                    try #require(chunk.type == .offsetData && chunk.isLast)
                    index = Int(chunk.cookie)
                    let offset = chunk.payload[..<8].reduce(0) { $0 << 8 | Int($1) }
                    #expect(offset == ranges[index].lowerBound)
                    data = Data(chunk.payload).dropFirst(8)
                } else {
                    try #require(try await client.integer(UInt32.self) == NBDProtocol.simpleReplyMagic)
                    #expect(try await client.integer(UInt32.self) == 0)
                    index = Int(try await client.integer(UInt64.self))
                    data = Data(try await client.receive(ranges[index].count))
                }
                #expect(missing.remove(index) != nil)
                let isRight = data == model[ranges[index]]
                #expect(isRight, "round \(round), \(ranges[index]), seed \(seed)")
            }
        }
        if file.fillsPipes, PagePipe() != nil {
            let counts = file.counts.value
            #expect(counts.filled > 50 && counts.refused > 0 && counts.denied > 10, "\(counts), seed \(seed)")
        }
        try await test.stop()
    }

    @Test(
        "a client that goes away in the midst of them leaves nothing behind", arguments: EngineKind.allCases)
    func hangUp(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        _ = try await Self.export(test, "a")
        let request = RawClient.request(Self.read, length: 1 << 20)
        for round in 0..<20 {
            let client = try await RawClient.open(test.path, "a")
            try await client.send(Array((0..<8).map { _ in request }.joined()))
            // With none, or a part, of an answer.
            if round % 2 == 0 { _ = try await client.receive(1 + round * 50_000) }
            client.socket.shutDown()
        }
        // Others are answered as before, and nothing is left of those when the server ends.
        let client = try await RawClient.open(test.path, "a")
        let answer = try await client.ask(Self.read, cookie: 7, length: 1 << 20)
        #expect(Data(answer.payload).dropFirst(8) == Data(count: 1 << 20))
        try await test.stop()
    }
}
