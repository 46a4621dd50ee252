internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("New qcow2 images")
struct Qcow2TargetTests {
    @Test(
        "a new image behaves as a device, is clean for qemu-img, and reads the same afterwards",
        arguments: [9, 12, 16, 18, 21] as [UInt64])
    func conformance(clusterBits: UInt64) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        let size: UInt64 = 3 << 20 | 0x600
        let conformance = Conformance(size: size)
        try await conformance.check { engine in
            let file = try await makeEmptyFile(path, on: engine)
            return try await TargetImage.create(
                on: file, format: .qcow2, size: size, backing: nil, clusterSize: 1 << clusterBits)
        } reopened: { engine in
            try await checkClean(path)
            let image = try await openImage(path, gate: .closed, on: engine)
            let ours = try await contents(of: image.device)
            try expectEqual(ours, try await judge(path, in: directory), "our reading and qemu-img's")
            return image.device
        }
    }

    @Test("a new raw image behaves as a device of exactly its size")
    func raw() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        let size: UInt64 = 1_000_003
        try await Conformance(size: size).check { engine in
            let file = try await makeEmptyFile(path, on: engine)
            return try await TargetImage.create(on: file, format: .raw, size: size, backing: nil)
        } reopened: { engine in
            try await openImage(path, format: .raw, on: engine).device
        }
    }
}
