internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Hostile images")
struct Qcow2FuzzTests {
    /// Interesting numbers for a mutated field.
    private static let numbers: [UInt64] = [
        0, 1, 2, 0x1ff, 0x200, 0xffff, 0x10000, 1 << 31, 0xffff_ffff, 1 << 32, 1 << 55, 1 << 56, 1 << 62,
        1 << 63,
        .max, .max - 511, 0x8000_0000_0000_0200, 0x4000_0000_0000_0000, 0x00ff_ffff_ffff_fe00,
    ]

    private func mutate(_ image: [UInt8], _ generator: inout SeededGenerator, tables: [Int]) -> [UInt8] {
        var image = image
        for _ in 0..<Int.random(in: 1...4, using: &generator) {
            let area = tables[Int.random(in: 0..<tables.count, using: &generator)]
            let position = min(area + Int.random(in: 0..<128, using: &generator) & ~3, image.count - 8)
            if generator.oneIn(2) {
                let number = Self.numbers[Int.random(in: 0..<Self.numbers.count, using: &generator)]
                for index in 0..<8 {
                    image[position + index] = UInt8(truncatingIfNeeded: number >> UInt64(56 - index * 8))
                }
            } else {
                image[position + Int.random(in: 0..<8, using: &generator)] = UInt8.random(
                    in: 0...255, using: &generator)
            }
        }
        if generator.oneIn(8) { image.removeLast(Int.random(in: 0..<image.count, using: &generator)) }
        return image
    }

    @Test(
        "a damaged image gives errors or data, never a trap or a hang",
        arguments: ["cluster_size=512", "cluster_size=64k", "extended_l2=on,cluster_size=16k", "compat=0.10"])
    func mutations(options: String) async throws {
        let directory = try TemporaryDirectory()
        let (raw, path, mutated) = (
            directory.file("raw"), directory.file("a.qcow2"), directory.file("m.qcow2")
        )
        try write((0..<300_000).map { UInt8(truncatingIfNeeded: $0 >> 12) }, to: raw)
        try await qemuImg(
            ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path], expecting: nil)
        try await qemuIO(path, ["write -P 1 100k 40k", "write -P 2 0 4k"])
        let image = try bytes(of: path)
        let header = try await readHeader(of: path)
        let l2 = Int(
            image[Int(header.l1Offset)..<Int(header.l1Offset) + 8].reduce(0) { $0 << 8 | UInt64($1) }
                & 0xff_ffff_ffff)
        let tables = [
            0, Int(header.l1Offset), l2, Int(header.refcountTableOffset), Int(header.refcountTableOffset) * 2,
        ]
        var generator = SeededGenerator(testSeed())
        for _ in 0..<testRounds(150) {
            let hostile = mutate(image, &generator, tables: tables)
            try write(hostile, to: mutated)
            try await onEngine { engine in
                // Errors are expected; what is tested is that nothing worse happens.
                do {
                    let image = try await openImage(
                        mutated, format: .qcow2, gate: .closed, on: engine)
                    await tryOut(image.device, writing: false)
                    try await image.close()
                } catch is BlockError {}
                let file = try await openForWriting(mutated, on: engine)
                do {
                    let target = try await TargetImage.openExisting(file, format: .qcow2)
                    await tryOut(target.device, writing: true)
                } catch is BlockError {}
                try await file.close()
            }
        }
    }

    private func tryOut(_ device: any BlockDevice, writing: Bool) async {
        let length = min(device.size, 200_000)
        let buffer = IOBuffer(count: Int(length))
        for offset in [0, device.size / 2, device.size - length] {
            let range = ByteRange(offset: min(offset, device.size - length), length: length)
            _ = try? await device.extents(in: range)
            _ = try? await device.read(range, into: buffer.slice)
            guard writing else { continue }
            _ = try? await device.write(range, from: buffer.slice)
            _ = try? await device.writeZeroes(range.prefix(150_000), mayUnmap: true)
            _ = try? await device.flush()
        }
    }

    @Test("headers of random bytes after the magic number never trap")
    func randomHeaders() {
        var generator = SeededGenerator(testSeed())
        for _ in 0..<100 * testRounds(200) {
            let buffer = IOBuffer(count: Int.random(in: 0...512, using: &generator))
            for index in 0..<buffer.count {
                buffer.bytes[index] = generator.oneIn(3) ? UInt8.random(in: 0...255, using: &generator) : 0
            }
            if buffer.count >= 24 {
                buffer.bytes.storeBigEndian(Qcow2Header.magic, at: 0)
                buffer.bytes.storeBigEndian(UInt32(3), at: 4)
                buffer.bytes.storeBigEndian(UInt32.random(in: 8...22, using: &generator), at: 20)
            }
            let bytes = UnsafeRawBufferPointer(buffer.bytes)
            _ = Qcow2HeaderParser.wantedBytes(bytes)
            _ = try? Qcow2HeaderParser.parse(bytes, fileSize: generator.next() >> 20, name: "fuzz")
        }
    }
}
