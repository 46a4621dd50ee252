internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Transfers of qcow2 drives that were begun")
struct BegunTransferTests {
    private static let clusterSize = 65536
    private static let clusters = 64

    /// DATAPATH.md rule 16: a freed host cluster is reused, or given back, only when all I/O translated to it has ended.
    @Test(
        "the cluster that a begun read reads is nobody else's, and not given back, before the read has ended")
    func freedWhileRead() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "\(Self.clusters * Self.clusterSize)"])
        let image = try bytes(of: path)
        let inode = try #require(FileIdentity.of(path: path)).inode
        let seed = testSeed()
        let left: Result<[UInt8], any Error> = await testThreads.blocking {
            Result {
                try play(path, SimFileEngine(files: [inode: SimFile(image, unit: 512)], seed: seed), inode)
            }
        }
        #expect(try Qcow2Checker(try left.get()).leaks == 0)
    }

    /// What is in the file at the end.
    private func play(_ path: String, _ engine: SimFileEngine, _ inode: UInt64) throws -> [UInt8] {
        let problem = Locked<(any Error)?>(nil)
        let isFinished = engine.drive {
            do { try await live(path, engine) } catch { problem.withLock { $0 = error } }
        }
        if let problem = problem.value { throw problem }
        guard isFinished else { throw TestKitError("a request is never answered") }
        return engine.files[inode]?.cache ?? []
    }

    private func live(_ path: String, _ engine: SimFileEngine) async throws {
        let journals = URL(fileURLWithPath: path).deletingLastPathComponent().path
        // A reserve of two clusters: what is free is used again soon.
        let options = Qcow2Options(
            role: .drive, journalDirectory: journals, reserveBytes: UInt64(2 * Self.clusterSize),
            minimumReserve: 2)
        let drive = try await openDrive(path, options: options, on: engine)
        let device = drive.device
        let first = ByteRange(offset: 0, length: UInt64(Self.clusterSize))
        try await fill(device, first, 0xAA)
        try await device.flush()

        engine.holdBegunReads()
        let (buffer, end) = (IOBuffer(count: Self.clusterSize), Locked<BegunEnd?>(nil))
        let hasBegun = device.beginRead(first, into: buffer.slice) { result in end.withLock { $0 = result } }
        try #require(hasBegun, "where the cluster is, is in memory")
        // Unmapped, durably, and again and again looked at: then it is free, but for who reads it.
        try await device.discard(first)
        for cluster in 1..<Self.clusters {
            try await fill(
                device, ByteRange(offset: UInt64(cluster) * first.length, length: first.length), 0xBB)
            try await device.flush()
        }
        engine.letBegunReadsGo()
        guard case .done = end.value else { throw TestKitError("the read has not ended well") }
        try expectEqual(
            Array(buffer.bytes), [UInt8](repeating: 0xAA, count: Self.clusterSize),
            "what was begun to be read")

        // And then it is: the last of as many clusters as the disk has finds room in it.
        try await fill(device, first, 0xCC)
        try await drive.close()
    }

    private func fill(_ device: any BlockDevice, _ range: ByteRange, _ value: UInt8) async throws {
        let buffer = IOBuffer(count: Int(range.length))
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: value)
        try await device.write(range, from: buffer.slice)
    }
}
