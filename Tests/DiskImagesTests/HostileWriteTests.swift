internal import BlockIO
internal import Foundation
internal import Glibc
internal import TestKit
internal import Testing

@testable internal import DiskImages

/// Images whose tables lead into each other, written by a guest that knows it: what it breaks is its own disk.
@Suite("Hostile images that are written")
struct HostileWriteTests {
    private static let size: UInt64 = 1 << 20
    private static let offsets: UInt64 = 0x00ff_ffff_ffff_fe00

    private func word(_ image: [UInt8], _ position: Int) -> UInt64 {
        image[position..<position + 8].reduce(0) { $0 << 8 | UInt64($1) }
    }

    private func store(_ value: UInt64, _ image: inout [UInt8], _ position: Int) {
        for index in 0..<8 {
            image[position + index] = UInt8(truncatingIfNeeded: value >> UInt64(56 - index * 8))
        }
    }

    /// Maps clusters of an image's tables as a guest's data, and data twice; returns where in the disk.
    private func entangle(
        _ image: inout [UInt8], _ header: Qcow2Header, _ generator: inout SeededGenerator
    ) -> [UInt64] {
        let clusters = UInt64(image.count) / header.clusterSize
        let tables = (0..<Int(header.l1Entries)).map {
            ($0, word(image, Int(header.l1Offset) + $0 * 8) & Self.offsets)
        }
        .filter { $0.1 != 0 }
        let blocks = stride(from: 0, to: Int(header.clusterSize), by: 8)
            .map { word(image, Int(header.refcountTableOffset) + $0) & Self.offsets }.filter { $0 != 0 }
        var shared = UInt64.random(in: 1..<clusters, using: &generator) * header.clusterSize
        var changed: [UInt64] = []
        for _ in 0..<Int.random(in: 3...6, using: &generator) {
            guard let (number, table) = tables.randomElement(using: &generator) else { break }
            let entry = Int.random(in: 0..<Int(header.entriesPerL2), using: &generator)
            let host: UInt64
            switch Int.random(in: 0..<8, using: &generator) {
            case 0, 1: host = blocks.randomElement(using: &generator) ?? shared
            case 2: host = table
            case 3:
                shared = UInt64.random(in: 1..<clusters, using: &generator) * header.clusterSize
                host = shared
            default: host = shared
            }
            store(host | 1 << 63, &image, Int(table) + entry * 8)
            changed.append(UInt64(number) * header.bytesPerL2 + UInt64(entry) * header.clusterSize)
        }
        return changed
    }

    /// An image with some data; clusters of a sector, and a byte for each refcount.
    private func makeImage(_ path: String) async throws -> (bytes: [UInt8], header: Qcow2Header) {
        try await qemuImg([
            "create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=8", path, "\(Self.size)",
        ])
        // A table for each 32 KiB: more than fit into memory.
        try await qemuIO(
            path, ["write -P 1 0 200k"] + (7..<32).map { "write -P 2 \($0 * 32)k 1k" })
        let image = try bytes(of: path)
        return (image, try await readHeader(of: path))
    }

    private func options(_ directory: TemporaryDirectory) -> Qcow2Options {
        Qcow2Options(
            role: .drive, journalDirectory: directory.path, reserveBytes: 16 << 10, metadataBytes: 8 << 10)
    }

    @Test(
        "on a device counters of clusters behind its end are not searched, however many an image says there are",
        .enabled(if: canUseLoopDevices))
    func countersBehindTheEnd() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        let mebibyte = 1 << 20
        try write([UInt8](repeating: 0, count: 32 * mebibyte), to: path)
        try await qemuImg([
            "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M,refcount_bits=1", path, "16M",
        ])
        var image = try bytes(of: path)
        image += [UInt8](repeating: 0, count: 32 * mebibyte - image.count)
        // A table of 8 MiB, the most there may be: the first block is as it was, all others are one of zeroes.
        let (table, zeroes) = (8 * mebibyte, 16 * mebibyte)
        store(word(image, Int(word(image, 48))), &image, table)
        for entry in 1..<mebibyte { store(UInt64(zeroes), &image, table + entry * 8) }
        store(UInt64(table), &image, 48)
        // Nine clusters are in use, a bit for each.
        let block = Int(word(image, table))
        image[block..<block + 2] = [0xff, 0x01]
        image[56..<60] = [0, 0, 0, 4]
        try write(image, to: path)
        try await onLoopDevice(over: path) { device in
            try await onEngine { engine in
                let image = try await openDrive(device, options: options(directory), on: engine)
                let buffer = IOBuffer(count: 65536)
                buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
                try await image.device.write(ByteRange(offset: 0, length: 65536), from: buffer.slice)
                try await image.close()
            }
        }
    }

    @Test("a guest whose data lie in its image's tables gets errors, and the agent no trap and no hang")
    func entangled() async throws {
        let directory = try TemporaryDirectory()
        let mutated = directory.file("m.qcow2")
        let (image, header) = try await makeImage(directory.file("a.qcow2"))
        let first = testSeed()
        for seed in 0..<UInt64(testRounds(300)) {
            var generator = SeededGenerator(first &+ seed)
            var changed = image
            let places = entangle(&changed, header, &generator)
            try write(changed, to: mutated)
            let own = generator.fork()
            try await onEngine { engine in
                let image = try await openDrive(mutated, options: options(directory), on: engine)
                await self.use(image.device, at: places, own)
                // It may be told once more what is wrong.
                try? await image.close()
            }
            for name in try FileManager.default.contentsOfDirectory(atPath: directory.path)
            where name.hasSuffix(".journal") {
                try FileManager.default.removeItem(atPath: directory.file(name))
            }
        }
    }

    /// What a guest does; any of it may be refused.
    private func use(_ device: any BlockDevice, at places: [UInt64], _ generator: SeededGenerator) async {
        var generator = generator
        let buffer = IOBuffer(count: 4096)
        for _ in 0..<300 {
            var range = ByteRange(
                offset: UInt64.random(in: 0..<Self.size / 512 - 8, using: &generator) * 512,
                length: UInt64.random(in: 1...8, using: &generator) * 512)
            if generator.oneIn(2), let place = places.randomElement(using: &generator) {
                range = ByteRange(offset: place, length: 512)
            }
            let data = buffer[0..<Int(range.length)]
            // As counters: free, or in use once.
            data.bytes.initializeMemory(as: UInt8.self, repeating: UInt8.random(in: 0...1, using: &generator))
            do {
                switch Int.random(in: 0..<10, using: &generator) {
                case 0, 1: try await device.write(range, from: data)
                case 2, 3: try await device.discard(range)
                case 4: try await device.writeZeroes(range, mayUnmap: true)
                case 5, 6: try await device.flush()
                default: try await device.read(range, into: data)
                }
            } catch {
                continue
            }
        }
    }
}
