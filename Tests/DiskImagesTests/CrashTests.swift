internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("Crashes of qcow2 drives")
struct CrashTests {
    static let shapes: [CrashHistory.Shape] = [
        .init(clusterSize: 4096, hasBacking: false, clusters: 40),
        .init(clusterSize: 4096, hasBacking: true, clusters: 600),
        .init(clusterSize: 65536, hasBacking: false, clusters: 10),
        .init(clusterSize: 65536, hasBacking: true, clusters: 10),
        .init(clusterSize: 2 << 20, hasBacking: true, clusters: 4),
    ]

    @Test(
        "what was answered survives a kill, what was flushed a power loss, and the image leaks at worst",
        arguments: shapes)
    func crashes(shape: CrashHistory.Shape) async throws {
        let directory = try TemporaryDirectory()
        let template = try await Self.makeTemplate(shape, in: directory)
        var generator = SeededGenerator(testSeed())
        let count = Self.histories(shape)
        var outcome = CrashHistory.Outcome()
        for number in 0..<count {
            let history = CrashHistory(template: template, seed: generator.next() >> 32)
            let one = try await Self.play(history, in: directory)
            outcome.kills += one.kills
            outcome.powerLosses += one.powerLosses
            guard number % max(1, count / 4) == 0 else { continue }
            for image in one.images { try await Self.checkWithQemu(image, in: directory) }
        }
        print("\(shape): \(count) histories, \(outcome.kills) kills, \(outcome.powerLosses) power losses")
    }

    @Test("one history is played again", .enabled(if: Self.onlySeed != nil), arguments: shapes)
    func again(shape: CrashHistory.Shape) async throws {
        let directory = try TemporaryDirectory()
        let template = try await Self.makeTemplate(shape, in: directory)
        _ = try await Self.play(CrashHistory(template: template, seed: Self.onlySeed ?? 0), in: directory)
    }

    static let onlySeed = getenv("DRIVE_BACKUP_HISTORY").flatMap { UInt64(String(cString: $0)) }

    /// The rules that can be left out, and what must notice.
    static let omissions: [(name: String, omit: @Sendable (inout Qcow2Rules) -> Void)] = [
        ("16-journal", { $0.journals = false }),
        ("16-after", { $0.journalsAfterData = false }),
        ("16-order", { $0.flushesDataFirst = false }),
        ("16-io", { $0.waitsForRequests = false }),
        ("16-written", { $0.waitsForUnmapping = false }),
        ("16-flushed", { $0.flushesUnmapping = false }),
        ("16-replay", { $0.settlesReplay = false }),
    ]

    @Test(
        "leaving out a rule of crash safety is noticed", .enabled(if: Self.omittedLimit > 0), arguments: 0..<7
    )
    func omission(index: Int) async throws {
        let (name, omit) = Self.omissions[index]
        let directory = try TemporaryDirectory()
        var templates: [CrashHistory.Template] = []
        for shape in Self.shapes.dropLast() {
            templates.append(try await Self.makeTemplate(shape, in: directory))
        }
        var generator = SeededGenerator(testSeed())
        var rules = Qcow2Rules()
        omit(&rules)
        for number in 1...Self.omittedLimit {
            let template = templates[number % templates.count]
            let history = CrashHistory(template: template, seed: generator.next() >> 32, rules: rules)
            do {
                _ = try await Self.play(history, in: directory)
            } catch {
                print("\(name) left out: found after \(number) histories: \(error)")
                return
            }
        }
        print("\(name) left out: not found in \(Self.omittedLimit) histories")
        #expect(name == "16-replay", "nothing noticed that the rule was left out")
    }

    static func histories(_ shape: CrashHistory.Shape) -> Int {
        let wanted = testRounds(60)
        return shape.clusterSize > 65536 ? max(1, wanted / 10) : wanted
    }

    /// In how many histories the absence of a rule is looked for; 0, the usual, is not at all.
    static let omittedLimit = getenv("DRIVE_BACKUP_OMISSIONS").flatMap { Int(String(cString: $0)) } ?? 0

    static func play(
        _ history: CrashHistory, in directory: TemporaryDirectory
    ) async throws -> CrashHistory.Outcome {
        try await testThreads.blocking { Result { try history.play(in: directory) } }.get()
    }

    static func makeTemplate(
        _ shape: CrashHistory.Shape, in directory: TemporaryDirectory
    ) async throws -> CrashHistory.Template {
        let name = "\(shape.clusterSize)-\(shape.hasBacking)"
        let (path, base) = (directory.file("\(name).qcow2"), directory.file("\(name).raw"))
        // Shorter than the disk; every third part of it is zero.
        var backing = [UInt8](repeating: 0, count: shape.size - shape.clusterSize * 3 / 2)
        backing.withUnsafeMutableBytes { bytes in
            for unit in 0..<bytes.count / shape.unit where unit / 16 % 3 != 0 {
                let place = unit * shape.unit..<(unit + 1) * shape.unit
                GuestModel.fill(
                    UnsafeMutableRawBufferPointer(rebasing: bytes[place]), with: 0x8000_0000 | UInt32(unit))
            }
        }
        try write(backing, to: base)
        var arguments = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=\(shape.clusterSize)"]
        if shape.hasBacking { arguments += ["-b", base, "-F", "raw"] }
        try await qemuImg(arguments + [path, "\(shape.size)"])
        return CrashHistory.Template(
            shape: shape, image: try bytes(of: path), backingPath: base, backing: backing)
    }

    /// Fails when qemu-img finds more than leaks.
    static func checkWithQemu(_ image: [UInt8], in directory: TemporaryDirectory) async throws {
        let path = directory.file("left.qcow2")
        try write(image, to: path)
        let result = try await qemuImg(["check", "-f", "qcow2", path], expecting: nil)
        guard result.status == 0 || result.status == 3 else {
            throw TestKitError("qemu-img check: \(result.output)\(result.error)")
        }
    }
}
