internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Crashes of targets")
struct TargetCrashTests {
    static let shapes: [TargetHistory.Shape] = [
        .init(kind: .new, clusterSize: 512, clusters: 300),
        .init(kind: .new, clusterSize: 4096, clusters: 600),
        .init(kind: .new, clusterSize: 65536, clusters: 12),
        .init(kind: .existing, clusterSize: 4096, clusters: 600),
        .init(kind: .existing, clusterSize: 65536, clusters: 12),
        .init(kind: .compressed, clusterSize: 4096, clusters: 40),
        .init(kind: .raw, clusterSize: 4096, clusters: 40),
    ]

    @Test(
        "a target whose agent is killed leaks at worst, is taken up with all that was written, and ends up clean",
        arguments: shapes)
    func crashes(shape: TargetHistory.Shape) async throws {
        let directory = try TemporaryDirectory()
        let template = try await Self.makeTemplate(shape, in: directory)
        var generator = SeededGenerator(testSeed())
        let count = testRounds(60)
        var (kills, takenUp) = (0, 0)
        for number in 0..<count {
            let history = TargetHistory(template: template, seed: generator.next() >> 32)
            let outcome = try await Self.play(history, in: directory)
            kills += outcome.kills
            takenUp += outcome.takenUp
            guard number % max(1, count / 6) == 0, shape.kind != .raw else { continue }
            for image in outcome.images { try await CrashTests.checkWithQemu(image, in: directory) }
            guard let complete = outcome.complete, shape.kind != .compressed else { continue }
            let path = directory.file("complete.qcow2")
            try write(complete, to: path)
            try await checkClean(path)
        }
        print("\(shape): \(count) histories, \(kills) kills, \(takenUp) times taken up")
        #expect(kills > 0 && takenUp > 0)
    }

    @Test(
        "one history is played again", .enabled(if: CrashTests.onlySeed != nil), arguments: shapes)
    func again(shape: TargetHistory.Shape) async throws {
        let directory = try TemporaryDirectory()
        let template = try await Self.makeTemplate(shape, in: directory)
        _ = try await Self.play(
            TargetHistory(template: template, seed: CrashTests.onlySeed ?? 0), in: directory)
    }

    /// The rules that can be left out.
    static let omissions: [(name: String, omit: @Sendable (inout Qcow2Rules) -> Void)] = [
        ("C-persisted", { $0.persistsMappings = false }),
        ("C-counted", { $0.countsFirst = false }),
        ("C-after", { $0.mapsAfterData = false }),
    ]

    @Test("leaving out a rule of a target's crash safety is noticed", arguments: 0..<3)
    func omission(index: Int) async throws {
        let (name, omit) = Self.omissions[index]
        let directory = try TemporaryDirectory()
        var templates: [TargetHistory.Template] = []
        for shape in Self.shapes where shape.kind != .raw {
            templates.append(try await Self.makeTemplate(shape, in: directory))
        }
        var generator = SeededGenerator(testSeed())
        var rules = Qcow2Rules()
        omit(&rules)
        let limit = max(2000, CrashTests.omittedLimit)
        for number in 1...limit {
            let template = templates[number % templates.count]
            let history = TargetHistory(template: template, seed: generator.next() >> 32, rules: rules)
            do {
                _ = try await Self.play(history, in: directory)
            } catch {
                print("\(name) left out: found after \(number) histories: \(error)")
                return
            }
        }
        Issue.record("\(name) left out: not found in \(limit) histories")
    }

    @Test("only the image that was begun is taken up, and one that is damaged is refused")
    func refusals() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await onEngine { engine in
            let backing = (name: "/images/base.raw", format: ImageFormat.raw)
            let made = try await TargetImage.create(
                on: try await makeEmptyFile(path, on: engine), format: .qcow2, size: 1 << 20, backing: backing
            )
            let buffer = IOBuffer(count: 65536)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            try await made.write(ByteRange(offset: 65536, length: 65536), from: buffer.slice)
            try await made.close()
            let others: [(size: UInt64, backing: (name: String, format: ImageFormat)?, cluster: UInt64)] = [
                (2 << 20, backing, 65536), (1 << 20, nil, 65536), (1 << 20, backing, 4096),
                (1 << 20, ("/images/other.raw", .raw), 65536), (1 << 20, ("/images/base.raw", .qcow2), 65536),
            ]
            for other in others {
                await Self.expect(.invalid, path, on: engine) { (file) throws(BlockError) in
                    try await TargetImage.resume(
                        file, format: .qcow2, size: other.size, backing: other.backing,
                        clusterSize: other.cluster)
                }
            }
            await Self.expect(.invalid, path, on: engine) { (file) throws(BlockError) in
                try await TargetImage.resume(file, format: .raw, size: 1 << 20, backing: nil)
            }
            // The cluster that was written loses its place; before, the image is as good as any.
            let whole = try bytes(of: path)
            let file = try await openForWriting(path, on: engine)
            let device = try await TargetImage.resume(
                file, format: .qcow2, size: 1 << 20, backing: backing)
            let found = IOBuffer(count: 65536)
            try await device.read(ByteRange(offset: 65536, length: 65536), into: found.slice)
            #expect(found.bytes.allSatisfy { $0 == 7 })
            try await device.close()
            #expect(try bytes(of: path).count < whole.count)
            try write(Array(try bytes(of: path).dropLast(65536)), to: path)
            await Self.expect(.corrupt, path, on: engine) { (file) throws(BlockError) in
                try await TargetImage.resume(file, format: .qcow2, size: 1 << 20, backing: backing)
            }
            try write([UInt8](repeating: 0, count: 65536), to: path)
            await Self.expect(.corrupt, path, on: engine) { (file) throws(BlockError) in
                try await TargetImage.resume(file, format: .qcow2, size: 1 << 20, backing: backing)
            }
        }
    }

    private static func expect(
        _ code: BlockError.Code, _ path: String, on engine: any IOEngine,
        _ resume: (HostFile) async throws(BlockError) -> any BlockDevice
    ) async {
        do {
            let file = try await openForWriting(path, on: engine)
            do throws(BlockError) {
                _ = try await resume(file)
                Issue.record("\(path) was taken up")
            } catch {
                #expect(error.code == code, "\(error)")
            }
            try await file.close()
        } catch {
            Issue.record(error)
        }
    }

    @Test("writes in flight at the same time share the writing of their mappings")
    func shared() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try write([], to: path)
        let inode = try #require(FileIdentity.of(path: path)?.inode)
        let engine = SimFileEngine(files: [inode: SimFile([], unit: 65536)], seed: testSeed())
        let (before, after) = (Locked(UInt64(0)), Locked(UInt64(0)))
        let isDone = await testThreads.blocking {
            engine.drive {
                do {
                    let file = try await HostFile.open(path, readOnly: false, growable: true, on: engine)
                    let device = try await TargetImage.create(
                        on: file, format: .qcow2, size: 16 << 20, backing: nil)
                    before.withLock { $0 = engine.files[inode]?.writes ?? 0 }
                    await withTaskGroup(of: Void.self) { group in
                        for piece in 0..<64 as Range<UInt64> {
                            group.addTask {
                                let buffer = IOBuffer(count: 65536)
                                buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
                                do {
                                    try await device.write(
                                        ByteRange(offset: piece << 16, length: 1 << 16), from: buffer.slice)
                                } catch {
                                    Issue.record(error)
                                }
                            }
                        }
                    }
                    after.withLock { $0 = engine.files[inode]?.writes ?? 0 }
                    try await device.close()
                } catch {
                    Issue.record(error)
                }
            }
        }
        #expect(isDone)
        // Each cluster of data lands in one piece. Alone, each would make one write of its table at least.
        let metadata = after.value - before.value - 64
        #expect(metadata >= 2 && metadata < 40)
    }

    static func play(
        _ history: TargetHistory, in directory: TemporaryDirectory
    ) async throws -> TargetHistory.Outcome {
        try await testThreads.blocking { Result { try history.play(in: directory) } }.get()
    }

    static func makeTemplate(
        _ shape: TargetHistory.Shape, in directory: TemporaryDirectory
    ) async throws -> TargetHistory.Template {
        var content = [UInt8](repeating: 0, count: shape.size)
        guard shape.kind == .existing || shape.kind == .compressed else {
            return TargetHistory.Template(shape: shape, image: [], content: content)
        }
        content.withUnsafeMutableBytes { bytes in
            for unit in 0..<bytes.count / shape.unit where unit / 16 % 3 != 0 {
                let place = unit * shape.unit..<(unit + 1) * shape.unit
                GuestModel.fill(
                    UnsafeMutableRawBufferPointer(rebasing: bytes[place]), with: 0x8000_0000 | UInt32(unit))
            }
        }
        let name = "\(shape.kind.rawValue)-\(shape.clusterSize)"
        let (raw, path) = (directory.file("\(name).raw"), directory.file("\(name).qcow2"))
        try write(content, to: raw)
        try await qemuImg(
            ["convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=\(shape.clusterSize)"]
                + (shape.kind == .compressed ? ["-c"] : []) + [raw, path])
        return TargetHistory.Template(shape: shape, image: try bytes(of: path), content: content)
    }
}
