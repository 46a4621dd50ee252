internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Raw disks whose format was probed")
struct ProbedRawTests {
    private func withDisk(
        _ start: [UInt8] = [], format: ImageFormat? = nil, isProbedRaw: Bool = false,
        _ body: @Sendable (any BlockDevice) async throws -> Void
    ) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        try DiskImagesTests.write(start + [UInt8](repeating: 1, count: (1 << 20) - start.count), to: path)
        try await onEngine { engine in
            let image = try await whenUnlocked {
                try await OpenImage.open(
                    path, format: format, readOnly: false, gate: .open, isProbedRaw: isProbedRaw, on: engine)
            }
            #expect(image.wasProbed == (format == nil))
            try await image.takeWritePermission()
            try await body(image.device)
            try await image.close()
        }
    }

    private func write(_ bytes: [UInt8], at offset: UInt64, to device: any BlockDevice) async -> BlockError? {
        let buffer = IOBuffer(count: bytes.count)
        buffer.bytes.copyBytes(from: bytes)
        do throws(BlockError) {
            try await device.write(ByteRange(offset: offset, length: UInt64(bytes.count)), from: buffer.slice)
            return nil
        } catch { return error }
    }

    private static let magic: [UInt8] = [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]

    @Test("a header is refused, in whatever pieces it comes", arguments: [1, 2, 3, 5, 8])
    func pieces(length: Int) async throws {
        try await withDisk { device in
            var refused = 0
            // Backwards, so that the start comes last.
            for start in stride(from: 0, to: 8, by: length).reversed() {
                let piece = Array(Self.magic[start..<min(8, start + length)])
                guard let error = await write(piece, at: UInt64(start), to: device) else { continue }
                refused += 1
                #expect(error.code == .denied)
                #expect(error.errno == 1)
                #expect(error.message.contains("qcow2"))
            }
            #expect(refused == 1)
            let sector = IOBuffer(count: 512)
            try await device.read(ByteRange(offset: 0, length: 512), into: sector.slice)
            #expect(ImageProbe.looksLikeOtherFormat(UnsafeRawBufferPointer(sector.bytes)) == nil)
        }
    }

    @Test("pieces that come at the same time do not make a header together")
    func concurrent() async throws {
        try await withDisk { device in
            await withTaskGroup(of: Void.self) { group in
                for index in 0..<8 {
                    group.addTask { _ = await write([Self.magic[index]], at: UInt64(index), to: device) }
                }
            }
            let sector = IOBuffer(count: 512)
            try await device.read(ByteRange(offset: 0, length: 512), into: sector.slice)
            #expect(ImageProbe.looksLikeOtherFormat(UnsafeRawBufferPointer(sector.bytes)) == nil)
        }
    }

    @Test("zeroes that make a header are refused, and large requests that hold one")
    func zeroes() async throws {
        // QED's number ends in a zero.
        try await withDisk([0x51, 0x45, 0x44, 0x45]) { device in
            let last = ByteRange(offset: 3, length: 1)
            for mayUnmap in [false, true] {
                await #expect(throws: BlockError.self) {
                    try await device.writeZeroes(last, mayUnmap: mayUnmap)
                }
            }
            await #expect(throws: BlockError.self) { try await device.discard(last) }
            #expect(
                await write(Self.magic + [UInt8](repeating: 0, count: 100_000), at: 0, to: device)?.code
                    == .denied)
            try await device.writeZeroes(ByteRange(offset: 0, length: 4096), mayUnmap: true)
            #expect(await write(Self.magic, at: 512, to: device) == nil)
            #expect(await write([UInt8](repeating: 7, count: 65536), at: 0, to: device) == nil)
        }
    }

    @Test("a disk that was probed once stays guarded; one whose format was stated takes everything")
    func stated() async throws {
        try await withDisk(format: .raw, isProbedRaw: true) { device in
            #expect(await write(Self.magic, at: 0, to: device)?.code == .denied)
        }
        try await withDisk(format: .raw) { device in
            #expect(await write(Self.magic, at: 0, to: device) == nil)
        }
    }
}
