internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@Suite("What every device does")
struct ConformanceTests {
    @Test("a simulated disk conforms", arguments: [UInt64(0), 1, 4096, 300_001, 1 << 20])
    func simulatedDisk(size: UInt64) async throws {
        var conformance = Conformance(size: size)
        conformance.rounds = 10
        let seed = conformance.seed
        try await conformance.check { engine in SimDisk(size: size, engine: engine, seed: seed) }
    }

    @Test(
        "a file conforms, on a disk and in memory", arguments: ["/tmp", "/dev/shm"], [UInt64(1), 1_048_653])
    func file(directory: String, size: UInt64) async throws {
        let path = "\(directory)/drive-backup-conformance.\(UUID())"
        // The file is of no interest afterwards.
        defer { try? FileManager.default.removeItem(atPath: path) }
        let make: Conformance.Maker = { engine in
            _ = FileManager.default.createFile(atPath: path, contents: nil)
            try FileHandle(forWritingTo: #require(URL(string: "file://" + path))).truncate(atOffset: size)
            return try await HostFile.open(path, readOnly: false, on: engine)
        }
        try await Conformance(size: size).check(of: make) { engine in
            try await HostFile.open(path, readOnly: true, on: engine)
        }
    }

    @Test(
        "a file that is used past the page cache conforms", .enabled(if: temporaryFilesTakeDirectTransfers),
        arguments: [false, true], [UInt64(1), 4096])
    func directFile(allocatesNothing: Bool, unit: UInt64) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        let size: UInt64 = 1_048_576 + 3 * 4096
        let make: Conformance.Maker = { engine in
            try Data(count: Int(size)).write(to: URL(fileURLWithPath: path))
            let engine: any IOEngine = allocatesNothing ? FaultyEngine(engine, .allocatesNothing) : engine
            return try await HostFile.open(path, readOnly: false, direct: true, leastUnit: unit, on: engine)
        }
        try await Conformance(size: size).check(of: make) { engine in
            try await HostFile.open(path, readOnly: true, direct: true, leastUnit: unit, on: engine)
        }
    }

    @Test(
        "a file of any length is read past the page cache", .enabled(if: temporaryFilesTakeDirectTransfers),
        arguments: [1, 511, 4097, 300_001])
    func oddLength(size: Int) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        var generator = SeededGenerator(8)
        let contents = (0..<size).map { _ in UInt8.random(in: 0...255, using: &generator) }
        try Data(contents).write(to: URL(fileURLWithPath: path))
        var conformance = Conformance(size: UInt64(size))
        conformance.contents = contents
        conformance.rounds = 8
        try await conformance.check { engine in
            try await HostFile.open(path, readOnly: true, direct: true, on: engine)
        }
    }

    @Test("a read-only file conforms and refuses writes")
    func readOnlyFile() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        var generator = SeededGenerator(7)
        let contents = (0..<100_001).map { _ in UInt8.random(in: 0...2, using: &generator) / 2 }
        try Data(contents).write(to: URL(fileURLWithPath: path))
        var conformance = Conformance(size: 100_001)
        conformance.contents = contents
        conformance.rounds = 8
        try await conformance.check { engine in try await HostFile.open(path, readOnly: true, on: engine) }
    }

    @Test(
        "a file conforms where transfers are short and interrupted, and zeroes must be written",
        arguments: [FaultyEngine.Fault.transfersShort, .allocatesNothing])
    func faulty(fault: FaultyEngine.Fault) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        let make: Conformance.Maker = { engine in
            try Data(count: 600_001).write(to: URL(fileURLWithPath: path))
            return try await HostFile.open(path, readOnly: false, on: FaultyEngine(engine, fault))
        }
        var conformance = Conformance(size: 600_001)
        conformance.rounds = 10
        try await conformance.check(of: make) { engine in
            try await HostFile.open(path, readOnly: true, on: engine)
        }
    }

    @Test("a growable file conforms")
    func growableFile() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        var conformance = Conformance(size: 0)
        conformance.refusesBeyondEnd = false
        try await conformance.check { engine in
            _ = FileManager.default.createFile(atPath: path, contents: nil)
            return try await HostFile.open(path, readOnly: false, growable: true, on: engine)
        }
    }

    @Test("a block device conforms, and is known for the file below it", .enabled(if: Self.canUseLoopDevices))
    func blockDevice() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.raw")
        try Data(count: 1_000_960).write(to: URL(fileURLWithPath: path))
        let made = try await runProcess("losetup", ["--find", "--show", path])
        try #require(made.status == 0, Comment(rawValue: made.error))
        let device = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
        let result: Result<Void, any Error>
        do {
            try await Conformance(size: 1_000_960).check { engine in
                let below = try await HostFile.open(path, readOnly: true, on: engine)
                let file = try await HostFile.open(device, readOnly: false, growable: true, on: engine)
                #expect(file.isBlockDevice && !file.isGrowable)
                #expect(file.identity != below.identity)
                #expect(file.aliases == [below.identity])
                try await below.close()
                // The next engine's device starts with zeroes as well.
                try await file.writeZeroes(file.range, mayUnmap: false)
                return file
            }
            result = .success(())
        } catch {
            result = .failure(error)
        }
        let detached = try await runProcess("losetup", ["--detach", device])
        #expect(detached.status == 0)
        try result.get()
    }

    private static let canUseLoopDevices = getuid() == 0 && access("/dev/loop-control", R_OK | W_OK) == 0

    @Test("a device that loses a write does not conform")
    func canary() async throws {
        await #expect(throws: TestKitError.self) {
            try await Conformance(size: 1 << 20).check { engine in
                ForgetfulDisk(SimDisk(size: 1 << 20, engine: engine))
            }
        }
    }
}

/// Forgets the last byte of every seventh write.
private final class ForgetfulDisk: DiskAbove {
    let below: any BlockDevice
    private let writes: EngineIsolated<Int>

    init(_ disk: SimDisk) {
        below = disk
        writes = EngineIsolated(0, engine: disk.engine)
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        writes.value += 1
        let forgets = writes.value % 7 == 0 && !range.isEmpty
        let count = buffer.count - (forgets ? 1 : 0)
        try await below.write(range.prefix(UInt64(count)), from: buffer[0..<count])
    }
}
