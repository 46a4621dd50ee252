internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Reading images that qemu-img made")
struct Qcow2ReadingTests {
    /// A raw disk with data, zeroes and holes of many lengths.
    private func makeDisk(_ path: String, size: Int, seed: UInt64) throws -> [UInt8] {
        var generator = SeededGenerator(seed)
        var disk = [UInt8](repeating: 0, count: size)
        for _ in 0..<24 {
            let start = Int.random(in: 0..<size, using: &generator)
            let length = min(size - start, 1 << Int.random(in: 4...18, using: &generator))
            let isRandom = generator.oneIn(2)
            var word = generator.next()
            for index in start..<start + length {
                if isRandom && index % 8 == 0 { word = generator.next() }
                disk[index] = UInt8(truncatingIfNeeded: word >> UInt64(index % 8 * 8))
            }
        }
        try write(disk, to: path)
        return disk
    }

    static let variants: [[String]] = [
        ["cluster_size=512"], ["cluster_size=1k"], ["cluster_size=2k"], ["cluster_size=4k"],
        ["cluster_size=8k"],
        ["cluster_size=16k"], ["cluster_size=32k"], ["cluster_size=64k"], ["cluster_size=128k"],
        ["cluster_size=256k"], ["cluster_size=512k"], ["cluster_size=1M"], ["cluster_size=2M"],
        ["compat=0.10"], ["compat=0.10", "cluster_size=4k"],
        ["refcount_bits=1"], ["refcount_bits=2"], ["refcount_bits=4"], ["refcount_bits=8"],
        ["refcount_bits=32"], ["refcount_bits=64"],
        ["preallocation=metadata"], ["preallocation=falloc"], ["preallocation=full"],
        ["extended_l2=on"], ["extended_l2=on", "cluster_size=16k"], ["extended_l2=on", "cluster_size=2M"],
        ["lazy_refcounts=on"],
    ]

    @Test("an image of any kind reads as qemu-img reads it", arguments: variants)
    func plain(options: [String]) async throws {
        let directory = try TemporaryDirectory()
        let (raw, path) = (directory.file("a.raw"), directory.file("a.qcow2"))
        let disk = try makeDisk(raw, size: 3 << 20 | 0x600, seed: testSeed())
        try await qemuImg(
            ["convert", "-f", "raw", "-O", "qcow2", "-o", options.joined(separator: ","), raw, path])
        for piece: UInt64 in [1 << 20, 37_777] {
            try expectEqual(try await readWithUs(path, format: nil, piece: piece), disk, "\(options)")
        }
    }

    @Test(
        "what stands in memory is read in one step, of many clusters and from below, too",
        arguments: ["cluster_size=4k", "cluster_size=64k", "extended_l2=on", "cluster_size=2M"])
    func atOnce(options: String) async throws {
        let directory = try TemporaryDirectory()
        let (raw, path) = (directory.file("a.raw"), directory.file("a.qcow2"))
        let overlay = directory.file("b.qcow2")
        let disk = try makeDisk(raw, size: 3 << 20 | 0x600, seed: testSeed())
        try await qemuImg(["convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, path])
        // Not even a table of its own.
        try await qemuImg(["create", "-f", "qcow2", "-b", path, "-F", "qcow2", overlay])
        try await onEngine(.ring) { engine in
            let plain = try await openImage(raw, format: .raw, on: engine)
            for image in [path, overlay] {
                let image = try await openImage(image, on: engine)
                try expectEqual(try await contents(of: image.device), disk, "by and by")
                for (start, length) in [
                    (0, 256 << 10), (37, 262_147), (1_000_000, 700_000), (3 << 20, 0x600),
                ] {
                    _ = await engine.letOthersIn()
                    let (buffer, range) = (
                        IOBuffer(count: length), ByteRange(offset: UInt64(start), length: UInt64(length))
                    )
                    // Not every file system says what is cached.
                    guard plain.device.readAtOnce(range, into: buffer.slice) else { continue }
                    buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0xee)
                    #expect(image.device.readAtOnce(range, into: buffer.slice), "\(range)")
                    try expectEqual(Array(buffer.bytes), Array(disk[start..<start + length]), "from \(start)")
                }
                try await image.device.close()
            }
            try await plain.device.close()
        }
    }

    @Test(
        "compressed clusters are unpacked, several at a time",
        arguments: ["zlib", "zstd"], ["cluster_size=4k", "cluster_size=64k", "cluster_size=2M"])
    func compressed(type: String, clusterSize: String) async throws {
        let directory = try TemporaryDirectory()
        let (raw, path) = (directory.file("a.raw"), directory.file("a.qcow2"))
        let disk = try makeDisk(raw, size: 5 << 20 | 0x200, seed: testSeed())
        try await qemuImg(
            [
                "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=\(type),\(clusterSize)",
                raw, path,
            ])
        try expectEqual(try await readWithUs(path, kind: .ring), disk, "one reader")
        try await onEngine { engine in
            let image = try await openImage(path, format: .qcow2, on: engine)
            try await withThrowingTaskGroup(of: Void.self) { group in
                for start in stride(from: 0, to: disk.count - 60_000, by: 50_001) {
                    group.addTask {
                        let buffer = IOBuffer(count: 60_000)
                        try await image.device.read(
                            ByteRange(offset: UInt64(start), length: 60_000), into: buffer.slice)
                        try expectEqual(
                            Array(buffer.bytes), Array(disk[start..<start + 60_000]), "from \(start)")
                    }
                }
                try await group.waitForAll()
            }
            try await image.close()
        }
    }

    @Test("a chain of three with mixed cluster sizes and odd sizes reads as qemu-img reads it")
    func chain() async throws {
        let directory = try TemporaryDirectory()
        let seed = testSeed()
        _ = try makeDisk(directory.file("base.raw"), size: 1_500_000, seed: seed)
        try FileManager.default.createDirectory(
            atPath: directory.file("sub"), withIntermediateDirectories: false)
        let middle = directory.file("sub/middle.qcow2")
        let top = directory.file("top.qcow2")
        try await qemuImg(
            [
                "create", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "../base.raw", "-F", "raw", middle,
                "3146240",
            ])
        try await qemuIO(
            middle,
            ["write -P 1 100k 30k", "write -z 200k 64k", "write -P 2 1465k 100k", "write -P 3 3000k 72k"])
        try await qemuImg(
            [
                "create", "-f", "qcow2", "-o", "cluster_size=128k", "-b", "sub/middle.qcow2", "-F", "qcow2",
                top, "2M",
            ])
        try await qemuIO(
            top, ["write -P 4 300k 300", "write -z 512k 256k", "discard 1M 128k", "write -P 5 2047k 1k"])
        let expected = try await judge(top, in: directory)
        for piece: UInt64 in [1 << 20, 4096, 33_333] {
            try expectEqual(try await readWithUs(top, piece: piece), expected, "top")
        }
        try expectEqual(try await readWithUs(middle), try await judge(middle, in: directory), "middle")
        try await onEngine { engine in
            let image = try await openImage(top, on: engine)
            #expect(image.layers.map(\.path) == [top, middle, directory.file("base.raw")])
            #expect(image.layers.map(\.format) == [.qcow2, .qcow2, .raw])
            #expect(image.layers.map(\.clusterSize) == [131072, 4096, 0])
            #expect(image.wasProbed)
            let extents = try await allExtents(of: image.device)
            // The layer's own: data, zeroes, a discarded cluster (which hides the backing file), the tail.
            let allocated = extents.filter(\.isAllocated).map {
                [$0.range.offset >> 10, $0.range.length >> 10]
            }
            #expect(allocated == [[256, 128], [512, 256], [1024, 128], [1920, 128]])
            for extent in extents where extent.isZero {
                #expect(expected[Int(extent.range.offset)..<Int(extent.range.end)].allSatisfy { $0 == 0 })
            }
            try await image.close()
        }
    }

    @Test("subclusters of all kinds over a backing file read as qemu-img reads them")
    func subclusters() async throws {
        let directory = try TemporaryDirectory()
        let (base, top) = (directory.file("base.raw"), directory.file("top.qcow2"))
        _ = try makeDisk(base, size: 1 << 20, seed: testSeed())
        try await qemuImg(
            ["create", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=64k", "-b", base, "-F", "raw", top])
        try await qemuIO(
            top,
            [
                "write -P 1 3k 9k", "write -z 20k 14k", "write -P 2 70k 100k", "discard 128k 64k",
                "write -P 3 511k 2k",
            ])
        try expectEqual(try await readWithUs(top), try await judge(top, in: directory), "subclusters")
    }

    @Test("internal snapshots do not show")
    func snapshots() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-f", "qcow2", path, "4M"])
        try await qemuIO(path, ["write -P 1 0 2M"])
        try await qemuImg(["snapshot", "-c", "s", path])
        try await qemuIO(path, ["write -P 2 1M 500k", "write -z 100k 200k"])
        try expectEqual(
            try await readWithUs(path), try await judge(path, in: directory), "after the snapshot")
    }

    @Test("an image that was not closed properly can be read and not written")
    func dirty() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "4M"])
        // qemu-io kills itself, so that the dirty bit stays.
        _ = try await runProcess(
            "qemu-io", ["-c", "write -P 7 0 1M", "-c", "flush", "-c", "sigraise 9", path])
        let found = try await readWithUs(path)
        #expect(found.prefix(1 << 20).allSatisfy { $0 == 7 })
        try await onEngine { engine in
            let image = try await OpenImage.open(path, format: nil, readOnly: false, gate: .open, on: engine)
            let error = await #expect(throws: BlockError.self) { try await image.takeWritePermission() }
            #expect(error?.message.contains("dirty") == true)
            try await image.close()
        }
    }
}

/// All extents of a device, asked for until its end.
func allExtents(of device: any BlockDevice) async throws -> [Extent] {
    var all = ExtentList()
    var rest = device.range
    while !rest.isEmpty {
        let some = try await device.extents(in: rest)
        for extent in some {
            all.append(extent.range, isZero: extent.isZero, isAllocated: extent.isAllocated)
        }
        rest = rest.dropFirst(some.reduce(0) { $0 + $1.range.length })
    }
    return all.extents
}
