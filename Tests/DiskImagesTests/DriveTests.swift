internal import BlockIO
internal import Foundation
internal import Glibc
internal import TestKit
internal import Testing

@testable internal import DiskImages

/// Opens an image as a drive that is written.
func openDrive(
    _ path: String, format: ImageFormat? = .qcow2, cache: CacheMode = .writeback, options: Qcow2Options,
    on engine: any IOEngine
) async throws -> OpenImage {
    let image = try await whenUnlocked {
        try await OpenImage.open(
            path, format: format, readOnly: false, cache: cache, gate: .open, options: options, on: engine)
    }
    try await image.takeWritePermission()
    return image
}

@Suite("qcow2 drives, written in place")
struct DriveTests {
    struct Way {
        let engine: EngineKind
        let cache: CacheMode

        init(_ engine: EngineKind, _ cache: CacheMode) { (self.engine, self.cache) = (engine, cache) }
    }

    @Test(
        "eight writers at the same time lose nothing, and leave a clean image",
        arguments: [
            Way(.ring, .writeback), Way(.threads, .writeback), Way(.ring, .none), Way(.threads, .none),
        ].filter { $0.cache != .none || temporaryFilesTakeDirectTransfers },
        ["512", "4k", "64k", "2M"])
    func stress(way: Way, clusterSize: String) async throws {
        let directory = try TemporaryDirectory()
        let (base, middle, path) = (
            directory.file("b.raw"), directory.file("m.qcow2"), directory.file("a.qcow2")
        )
        let size = 12 << 20 | 0x600
        try write((0..<size - 70_000).map { UInt8(truncatingIfNeeded: $0 >> 12) | 1 }, to: base)
        try await qemuImg(["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle, "\(size)"])
        try await qemuIO(middle, ["write -P 7 1M 300k", "write -z 3M 1M"])
        try await qemuImg([
            "create", "-q", "-f", "qcow2", "-o", "cluster_size=\(clusterSize)", "-b", middle, "-F", "qcow2",
            path,
            "\(size)",
        ])
        let model = Locked(try await judge(path, in: directory))
        let seed = testSeed()
        try await onEngine(way.engine) { engine in
            let options = Qcow2Options(
                role: .drive, journalDirectory: directory.path, journalRecords: 512, reserveBytes: 4 << 20)
            let image = try await openDrive(path, cache: way.cache, options: options, on: engine)
            try await withThrowingTaskGroup(of: Void.self) { group in
                var generator = SeededGenerator(seed)
                for writer in 0..<8 {
                    let own = generator.fork()
                    group.addTask {
                        // Every eighth stripe of an odd size is this writer's: clusters are shared, bytes are not.
                        var writer = StripeWriter(number: writer, generator: own, size: size, model: model)
                        for _ in 0..<60 { try await writer.change(image.device) }
                    }
                }
                try await group.waitForAll()
            }
            try expectEqual(try await contents(of: image.device), model.value, "before closing")
            #expect(image.backingDevice?.size == UInt64(size))
            try await image.close()
        }
        try await checkClean(path)
        try expectEqual(try await judge(path, in: directory), model.value, "qemu-img's reading")
        let left = try FileManager.default.contentsOfDirectory(atPath: directory.path)
        #expect(!left.contains { $0.hasSuffix(".journal") })
    }

    @Test("shared and compressed clusters are replaced, and internal snapshots keep theirs")
    func sharedClusters() async throws {
        let directory = try TemporaryDirectory()
        let (raw, path) = (directory.file("a.raw"), directory.file("a.qcow2"))
        try write((0..<2 << 20).map { UInt8(truncatingIfNeeded: $0 >> 9) }, to: raw)
        try await qemuImg(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=16k", raw, path])
        try await qemuImg(["snapshot", "-c", "s", path])
        let snapshot = try await judge(path, in: directory)
        try await qemuIO(path, ["write -P 1 100k 300k"])
        let expected = try await judge(path, in: directory)
        let seed = testSeed()
        let model = try await onEngine(.ring) { engine in
            let options = Qcow2Options(
                role: .drive, journalDirectory: directory.path, reserveBytes: 256 << 10)
            let image = try await openDrive(path, options: options, on: engine)
            var changes = RandomChanges(
                generator: SeededGenerator(seed), model: expected, clusterSize: 16384)
            for step in 0..<80 {
                try await changes.change(image.device)
                if step % 10 == 0 {
                    try expectEqual(try await contents(of: image.device), changes.model, "step \(step)")
                }
            }
            try await image.close()
            return changes.model
        }
        try await checkClean(path)
        try expectEqual(try await judge(path, in: directory), model, "qemu-img's reading")
        try await qemuImg(["snapshot", "-a", "s", path])
        try expectEqual(try await judge(path, in: directory), snapshot, "the snapshot")
        try await checkClean(path)
    }

    @Test("a guest that discards and rewrites everything again and again does not let the file grow for ever")
    func reuse() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "8M"])
        for _ in 0..<3 {
            try await onEngine { engine in
                let options = Qcow2Options(
                    role: .drive, journalDirectory: directory.path, reserveBytes: 1 << 20)
                let image = try await openDrive(path, options: options, on: engine)
                let buffer = IOBuffer(count: 1 << 20)
                buffer.bytes.initializeMemory(as: UInt8.self, repeating: 3)
                for round in 0..<10 {
                    for piece in 0..<8 as Range<UInt64> {
                        let range = ByteRange(offset: piece << 20, length: 1 << 20)
                        try await image.device.write(range, from: buffer.slice)
                    }
                    if round < 9 { try await image.device.discard(image.device.range) }
                }
                try await image.close()
            }
            try await checkClean(path)
            #expect(try bytes(of: path).count < 20 << 20)
        }
        try expectEqual(
            try await judge(path, in: directory), [UInt8](repeating: 3, count: 8 << 20), "afterwards")
    }

    @Test(
        "an entry that points into the image's own tables is not followed: the image is marked and left alone"
    )
    func damage() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "4M"])
        try await qemuIO(path, ["write -P 5 0 64k", "write -P 6 1M 64k"])
        var image = try bytes(of: path)
        let l1 = image.withUnsafeBytes { $0.bigEndian(at: 40, as: UInt64.self) }
        let table =
            image.withUnsafeBytes { $0.bigEndian(at: Int(l1), as: UInt64.self) } & Qcow2Entry.offsetMask
        image.withUnsafeMutableBytes { $0.storeBigEndian(l1 | Qcow2Entry.copied, at: Int(table)) }
        try write(image, to: path)
        try await onEngine { engine in
            let options = Qcow2Options(role: .drive, journalDirectory: directory.path)
            let drive = try await openDrive(path, options: options, on: engine)
            let buffer = IOBuffer(count: 4096)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            func code(_ offset: UInt64) async -> BlockError.Code? {
                do throws(BlockError) {
                    try await drive.device.write(ByteRange(offset: offset, length: 4096), from: buffer.slice)
                    return nil
                } catch { return error.code }
            }
            #expect(await code(1 << 20) == nil)
            #expect(await code(2 << 20) == nil)
            #expect(await code(0) == .corrupt)
            #expect(await code(1 << 20) == .corrupt, "nothing is written any more")
            await #expect(throws: BlockError.self) { try await drive.device.flush() }
            try await drive.device.read(ByteRange(offset: 1 << 20, length: 4096), into: buffer.slice)
            #expect(buffer.bytes[0] == 7)
            await #expect(throws: BlockError.self) { try await drive.close() }
        }
        let info = try await qemuImg(["info", path])
        #expect(info.output.contains("corrupt: true"))
        // What was written before is in the image all the same.
        let left = try FileManager.default.contentsOfDirectory(atPath: directory.path)
        #expect(!left.contains { $0.hasSuffix(".journal") })
    }

    @Test(
        "tables that lie in other tables, or nowhere, are found before they are written, and the image is marked",
        arguments: ["L1", "L1 to header", "zero", "refcounts", "refcounts nowhere"])
    func overlappingTables(kind: String) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "4M"])
        try await qemuIO(path, ["write -P 5 0 64k", "write -P 6 1M 64k"])
        var image = try bytes(of: path)
        func word(_ place: UInt64) -> UInt64 { image.withUnsafeBytes { $0.bigEndian(at: Int(place)) } }
        let (l1, refcounts) = (word(40), word(48))
        let table = word(l1) & Qcow2Entry.offsetMask
        let (place, value) =
            switch kind {
            case "L1": (l1, refcounts | Qcow2Entry.copied)
            // No offset at all would be no table; its second half is in the header's cluster, too.
            case "L1 to header": (l1, l1 | Qcow2Entry.copied)
            case "zero": (table, l1 | Qcow2Entry.copied | 1)
            case "refcounts nowhere": (refcounts, UInt64.max - 0xffff)
            default: (refcounts, l1)
            }
        image.withUnsafeMutableBytes { $0.storeBigEndian(value, at: Int(place)) }
        try write(image, to: path)
        try await onEngine { engine in
            let options = Qcow2Options(role: .drive, journalDirectory: directory.path)
            let drive = try await openDrive(path, options: options, on: engine)
            let buffer = IOBuffer(count: 4096)
            let offset: UInt64 = kind.hasPrefix("refcounts") ? 2 << 20 : 0
            do {
                try await drive.device.write(ByteRange(offset: offset, length: 4096), from: buffer.slice)
                Issue.record("the write succeeded")
            } catch { #expect((error as? BlockError)?.code == .corrupt) }
            await #expect(throws: BlockError.self) { try await drive.close() }
        }
        #expect(try bytes(of: path)[79] & 2 != 0, "the corrupt bit")
    }

    @Test("a compressed cluster that cannot be unpacked is an error there and nowhere else")
    func badCompressedCluster() async throws {
        let directory = try TemporaryDirectory()
        let (raw, path) = (directory.file("a.raw"), directory.file("a.qcow2"))
        try write((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 >> 9) | 1 }, to: raw)
        try await qemuImg(["convert", "-c", "-f", "raw", "-O", "qcow2", raw, path])
        var image = try bytes(of: path)
        func word(_ place: UInt64) -> UInt64 { image.withUnsafeBytes { $0.bigEndian(at: Int(place)) } }
        let entry = word(word(word(40)) & Qcow2Entry.offsetMask)
        let host = Int(entry & (1 << 54 - 1))
        for index in host..<host + 16 { image[index] = 0xff }
        try write(image, to: path)
        try await onEngine { engine in
            let options = Qcow2Options(role: .drive, journalDirectory: directory.path)
            let drive = try await openDrive(path, options: options, on: engine)
            let buffer = IOBuffer(count: 4096)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            let (bad, good) = (ByteRange(offset: 0, length: 4096), ByteRange(offset: 1 << 19, length: 4096))
            for _ in 0..<2 {
                for isWrite in [false, true] {
                    do {
                        if isWrite {
                            try await drive.device.write(bad, from: buffer.slice)
                        } else {
                            try await drive.device.read(bad, into: buffer.slice)
                        }
                        Issue.record("a bad cluster was unpacked")
                    } catch { #expect((error as? BlockError)?.code == .inputOutput) }
                }
                try await drive.device.write(good, from: buffer.slice)
                try await drive.device.flush()
            }
            try await drive.close()
        }
        #expect(try bytes(of: path)[79] & 2 == 0, "the corrupt bit")
        try await checkClean(path)
    }

    @Test("behind the end of a disk nothing old comes to light when it is enlarged")
    func tail() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        let size = 4 << 20 | 0x1000
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "\(size)"])
        // What a snapshot leaves behind is free, and where a file system punches no holes it holds old bytes.
        try await qemuIO(path, ["write -P 5 0 4M"])
        let old = try bytes(of: path)
        func word(_ place: UInt64) -> UInt64 { old.withUnsafeBytes { $0.bigEndian(at: Int(place)) } }
        let table = word(word(40)) & Qcow2Entry.offsetMask
        // The snapshot's table becomes free as well: it stays where it is, and the disk gets a copy.
        let hosts = [Int(table)] + (0..<64).map { Int(word(table + $0 * 8) & Qcow2Entry.offsetMask) }
        try await qemuImg(["snapshot", "-c", "s", path])
        try await qemuIO(path, ["write -z -u 0 4M"])
        try await qemuImg(["snapshot", "-d", "s", path])
        var image = try bytes(of: path)
        for host in hosts where host < image.count {
            image.replaceSubrange(host..<host + 65536, with: repeatElement(5, count: 65536))
        }
        try write(image, to: path)
        try await onEngine { engine in
            let options = Qcow2Options(
                role: .drive, journalDirectory: directory.path, reserveBytes: 1 << 20)
            let drive = try await openDrive(path, options: options, on: engine)
            let end = ByteRange(offset: 4 << 20, length: 0x1000)
            let buffer = IOBuffer(count: 0x1000)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 9)
            try await drive.device.write(end, from: buffer.slice)
            try await drive.close()
        }
        try await qemuImg(["resize", "-q", "-f", "qcow2", path, "5M"])
        var expected = [UInt8](repeating: 0, count: 5 << 20)
        expected.replaceSubrange(4 << 20..<size, with: repeatElement(9, count: 0x1000))
        try expectEqual(try await judge(path, in: directory), expected, "after it was enlarged")
    }

    @Test(
        "a device that is full where the next refcount block would begin refuses what is new and keeps the rest",
        .enabled(if: canUseLoopDevices))
    func fullDevice() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        // One refcount block counts 2048 clusters of 4 KiB.
        try write([UInt8](repeating: 0, count: 8 << 20), to: path)
        try await onLoopDevice(over: path) { device in
            try await qemuImg(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", device, "16M"])
            try await fill(device, in: directory)
            try await checkClean(device)
        }
    }

    private func fill(_ device: String, in directory: TemporaryDirectory) async throws {
        try await onEngine { engine in
            let options = Qcow2Options(
                role: .drive, journalDirectory: directory.path, reserveBytes: 256 << 10)
            let drive = try await openDrive(device, options: options, on: engine)
            let buffer = IOBuffer(count: 65536)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            var failures = 0
            for piece in 0..<256 as Range<UInt64> {
                do {
                    try await drive.device.write(
                        ByteRange(offset: piece << 16, length: 65536), from: buffer.slice)
                } catch {
                    #expect((error as? BlockError)?.code == .noSpace, "\(error)")
                    failures += 1
                }
                if piece % 32 == 0 { try await drive.device.flush() }
            }
            #expect(failures > 100)
            try await drive.device.write(ByteRange(offset: 0, length: 65536), from: buffer.slice)
            try await drive.device.flush()
            try await drive.device.discard(ByteRange(offset: 0, length: 1 << 20))
            try await drive.device.flush()
            try await drive.device.write(ByteRange(offset: 15 << 20, length: 65536), from: buffer.slice)
            try await drive.close()
        }
    }

    @Test(
        "in allocated clusters a flush is one flush of the file; a fresh cluster is written without reading")
    func costs() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "4M"])
        let template = try bytes(of: path)
        let identity = try #require(FileIdentity.of(path: path))
        let counts = try await testThreads.blocking { () -> Result<[Int], any Error> in
            let engine = SimFileEngine(files: [identity.inode: SimFile(template, unit: 4096)], seed: 1)
            let counts = Locked<[Int]>([])
            let failure = Locked<(any Error)?>(nil)
            let isFinished = engine.drive {
                do {
                    let options = Qcow2Options(role: .drive, journalDirectory: directory.path)
                    let drive = try await openDrive(path, options: options, on: engine)
                    let device = drive.device
                    let buffer = IOBuffer(count: 65536)
                    buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
                    try await device.write(ByteRange(offset: 0, length: 65536), from: buffer.slice)
                    try await device.flush()
                    let (reads, flushes) = (engine.reads, engine.flushes)
                    try await device.write(ByteRange(offset: 65536, length: 65536), from: buffer.slice)
                    try await device.write(ByteRange(offset: 200_000, length: 512), from: buffer[0..<512])
                    let (afterReads, afterWrites) = (engine.reads, engine.flushes)
                    try await device.flush()
                    let before = engine.flushes
                    try await device.write(ByteRange(offset: 4096, length: 4096), from: buffer[0..<4096])
                    try await device.flush()
                    let after = engine.flushes
                    counts.withLock { $0 = [afterReads - reads, afterWrites - flushes, after - before] }
                    try await drive.close()
                } catch { failure.withLock { $0 = error } }
            }
            if let failure = failure.value { return .failure(failure) }
            return isFinished ? .success(counts.value) : .failure(TestKitError("a request is never answered"))
        }.get()
        #expect(counts == [0, 0, 1], "reads and flushes of writes, flushes of a flush")
    }
}

/// Changes stripes that belong to it alone.
private struct StripeWriter {
    static let stripe = 3000
    let number: Int
    var generator: SeededGenerator
    let size: Int
    let model: Locked<[UInt8]>

    mutating func change(_ device: any BlockDevice) async throws {
        let stripes = size / Self.stripe / 8
        let start = (Int.random(in: 0..<stripes, using: &generator) * 8 + number) * Self.stripe
        let range = start..<start + Int.random(in: 1...Self.stripe, using: &generator)
        switch Int.random(in: 0..<10, using: &generator) {
        case 0..<7:
            let value = UInt8.random(in: 1...255, using: &generator)
            let buffer = IOBuffer(count: range.count)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: value)
            try await device.writeAsServed(range.byteRange, from: buffer.slice)
            set(range, value)
        case 7, 8:
            try await device.writeZeroes(range.byteRange, mayUnmap: generator.oneIn(2))
            set(range, 0)
        default: try await device.flush()
        }
        let buffer = IOBuffer(count: range.count)
        try await device.readAsServed(range.byteRange, into: buffer.slice)
        let expected = model.withLock { Array($0[range]) }
        try expectEqual(Array(buffer.bytes), expected, "bytes \(range)")
    }

    private func set(_ range: Range<Int>, _ value: UInt8) {
        model.withLock { model in
            model.withUnsafeMutableBytes {
                _ = UnsafeMutableRawBufferPointer(rebasing: $0[range]).initializeMemory(
                    as: UInt8.self, repeating: value)
            }
        }
    }
}
