internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Existing images as targets")
struct ExistingTargetTests {
    static let variants: [[String]] = [
        ["cluster_size=512"], ["cluster_size=4k"], ["cluster_size=64k"], ["cluster_size=2M"],
        ["compat=0.10", "cluster_size=4k"], ["compat=0.10"],
        ["refcount_bits=1"], ["refcount_bits=2"], ["refcount_bits=4", "cluster_size=1k"], ["refcount_bits=8"],
        ["refcount_bits=32"], ["refcount_bits=64", "cluster_size=512"],
        ["preallocation=metadata"], ["preallocation=full", "cluster_size=8k"], ["lazy_refcounts=on"],
    ]

    @Test("random changes to an image of qemu-img's leave it clean and as they say", arguments: variants)
    func changes(options: [String]) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        let size = 2 << 20 | 0x600
        try await qemuImg([
            "create", "-q", "-f", "qcow2", "-o", options.joined(separator: ","), path, "\(size)",
        ])
        try await qemuIO(path, ["write -P 9 100k 700k", "write -z 300k 64k", "write -P 8 2000k 48k"])
        try await change(path, steps: 40, in: directory)
    }

    @Test("shared and compressed clusters are replaced, and internal snapshots keep theirs")
    func sharedClusters() async throws {
        let directory = try TemporaryDirectory()
        let (raw, path) = (directory.file("a.raw"), directory.file("a.qcow2"))
        try write((0..<2 << 20).map { UInt8(truncatingIfNeeded: $0 >> 9) }, to: raw)
        try await qemuImg(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=16k", raw, path])
        try await qemuImg(["snapshot", "-c", "before", path])
        try await qemuIO(path, ["write -P 1 100k 300k"])
        try await qemuImg(["snapshot", "-c", "between", path])
        try await qemuIO(path, ["write -P 2 300k 300k"])
        let between = directory.file("between.raw")
        try await qemuImg(["convert", "-l", "snapshot.name=between", "-O", "raw", path, between])
        try await change(path, steps: 60, in: directory)
        try await qemuImg(["snapshot", "-a", "between", path])
        try expectEqual(try await judge(path, in: directory), try bytes(of: between), "the snapshot")
        try await qemuImg(["snapshot", "-d", "before", path])
        try await checkClean(path)
    }

    @Test("the refcount table grows", arguments: ["cluster_size=512,refcount_bits=64", "cluster_size=512"])
    func growingRefcounts(options: String) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        // 64 table entries of 64 or 256 clusters each: 2 or 8 MiB of file.
        try await qemuImg(["create", "-q", "-f", "qcow2", "-o", options, path, "12M"])
        try await onEngine { engine in
            let target = try await TargetImage.openExisting(
                try await openForWriting(path, on: engine), format: nil)
            let buffer = IOBuffer(count: 1 << 20)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 3)
            try await withThrowingTaskGroup(of: Void.self) { group in
                for piece in 0..<12 as Range<UInt64> {
                    group.addTask {
                        try await target.device.write(
                            ByteRange(offset: piece << 20, length: 1 << 20), from: buffer.slice)
                    }
                }
                try await group.waitForAll()
            }
            try await target.device.flush()
            try await target.device.close()
        }
        try await checkClean(path)
        try expectEqual(
            try await judge(path, in: directory), [UInt8](repeating: 3, count: 12 << 20), "after growth")
    }

    @Test("opening an existing image changes nothing, and its bitmaps are given up at the first write")
    func autoclear() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "1M"])
        try await qemuImg(["bitmap", "--add", path, "b"])
        let before = try bytes(of: path)
        try await onEngine { engine in
            let target = try await TargetImage.openExisting(
                try await openForWriting(path, on: engine), format: nil)
            #expect(target.format == .qcow2)
            #expect(target.virtualSize == 1 << 20)
            #expect(target.clusterSize == 65536)
            try await target.device.flush()
            let unchanged = try bytes(of: path) == before
            #expect(unchanged)
            try await target.device.writeZeroes(ByteRange(offset: 0, length: 512), mayUnmap: true)
            try await target.device.flush()
            try await target.device.close()
        }
        let header = try bytes(of: path)[88..<96]
        #expect(header.allSatisfy { $0 == 0 })
        let info = try await qemuImg(["info", path])
        #expect(!info.output.contains("auto") || info.output.contains("in-use"))
    }

    @Test("whole clusters of an overlay mask its backing file, zeroes too", arguments: ["1.1", "0.10"])
    func overlay(compat: String) async throws {
        let directory = try TemporaryDirectory()
        let (base, path) = (directory.file("base.raw"), directory.file("a.qcow2"))
        let size = 1 << 20
        try write([UInt8](repeating: 5, count: size), to: base)
        try await qemuImg(
            [
                "create", "-q", "-f", "qcow2", "-o", "compat=\(compat)", "-b", base, "-F", "raw", path,
                "\(size)",
            ])
        try await onEngine { engine in
            let target = try await TargetImage.openExisting(
                try await openForWriting(path, on: engine), format: .qcow2)
            #expect(target.backingName == base)
            let buffer = IOBuffer(count: 128 << 10)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 6)
            try await target.device.write(ByteRange(offset: 64 << 10, length: 128 << 10), from: buffer.slice)
            try await target.device.writeZeroes(
                ByteRange(offset: 256 << 10, length: 256 << 10), mayUnmap: true)
            await #expect(throws: BlockError.self, "the rest of the cluster cannot be read") {
                try await target.device.write(ByteRange(offset: 0, length: 4096), from: buffer[0..<4096])
            }
            try await target.device.flush()
            try await target.device.close()
        }
        try await checkClean(path)
        var expected = [UInt8](repeating: 5, count: size)
        expected.replaceSubrange(64 << 10..<192 << 10, with: repeatElement(6, count: 128 << 10))
        expected.replaceSubrange(256 << 10..<512 << 10, with: repeatElement(0, count: 256 << 10))
        try expectEqual(try await judge(path, in: directory), expected, "the overlay")
    }

    @Test("a drive that ends inside of the last sector covers an existing overlay's last cluster")
    func oddTailOfOverlay() async throws {
        let directory = try TemporaryDirectory()
        let (base, path) = (directory.file("base.raw"), directory.file("a.qcow2"))
        try write([UInt8](repeating: 5, count: 66_048), to: base)
        try await qemuImg(["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path, "66048"])
        try await onEngine { engine in
            let target = try await TargetImage.openExisting(
                try await openForWriting(path, on: engine), format: nil)
            let buffer = IOBuffer(count: 66_000)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 6)
            let range = ByteRange(offset: 0, length: 66_000)
            try await target.device.write(range, from: buffer.slice)
            let places = try await TargetImage.places(of: range, in: target.device)
            #expect(places.reduce(0) { $0 + $1.length } == 66_000)
            try await target.device.writeZeroes(ByteRange(offset: 66_000, length: 48), mayUnmap: true)
            try await target.device.flush()
            try await target.device.close()
        }
        try await checkClean(path)
        let expected = [UInt8](repeating: 6, count: 66_000) + [UInt8](repeating: 0, count: 48)
        try expectEqual(try await judge(path, in: directory), expected, "the overlay")
    }

    @Test("a new overlay records its backing file, and its odd tail covers what is below")
    func newOverlay() async throws {
        let directory = try TemporaryDirectory()
        let (base, path) = (directory.file("base.raw"), directory.file("a.qcow2"))
        let size = 300_000
        try write([UInt8](repeating: 5, count: size), to: base)
        try await onEngine { engine in
            let device = try await TargetImage.create(
                on: try await makeEmptyFile(path, on: engine), format: .qcow2, size: UInt64(size),
                backing: (base, .raw))
            #expect(device.size == 300_032)
            let start = 262_144
            let buffer = IOBuffer(count: size - start)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            try await device.writeZeroes(ByteRange(offset: 65536, length: 65536), mayUnmap: true)
            try await device.write(
                ByteRange(offset: UInt64(start), length: UInt64(size - start)), from: buffer.slice)
            try await device.flush()
            try await device.close()
        }
        try await checkClean(path)
        let info = try await qemuImg(["info", path])
        #expect(info.output.contains("backing file: \(base)"))
        #expect(info.output.contains("backing file format: raw"))
        var expected = [UInt8](repeating: 5, count: size) + [UInt8](repeating: 0, count: 32)
        expected.replaceSubrange(65536..<131_072, with: repeatElement(0, count: 65536))
        expected.replaceSubrange(262_144..<size, with: repeatElement(7, count: size - 262_144))
        try expectEqual(try await judge(path, in: directory), expected, "qemu-img's reading")
        try expectEqual(try await readWithUs(path), expected, "our reading")
    }

    private func change(_ path: String, steps: Int, in directory: TemporaryDirectory) async throws {
        let seed = testSeed()
        let expected = try await judge(path, in: directory)
        let model = try await onEngine { engine in
            let target = try await TargetImage.openExisting(
                try await openForWriting(path, on: engine), format: nil)
            var changes = RandomChanges(
                generator: SeededGenerator(seed), model: expected, clusterSize: Int(target.clusterSize))
            try expectEqual(try await contents(of: target.device), changes.model, "before")
            for step in 0..<steps {
                try await changes.change(target.device)
                if step % 8 == 0 {
                    try expectEqual(try await contents(of: target.device), changes.model, "step \(step)")
                }
            }
            try await target.device.flush()
            try await target.device.close()
            return changes.model
        }
        try await checkClean(path)
        try expectEqual(try await judge(path, in: directory), model, "qemu-img's reading")
        try expectEqual(try await readWithUs(path), model, "our reading")
    }
}
