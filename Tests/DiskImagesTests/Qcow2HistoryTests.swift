internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import DiskImages

/// One random change of a disk and of the bytes that say what it must hold.
struct RandomChanges {
    var generator: SeededGenerator
    var model: [UInt8]
    /// The unit around which lengths and offsets gather.
    var clusterSize: Int

    mutating func change(_ device: any BlockDevice) async throws {
        let range = randomRange()
        switch Int.random(in: 0..<10, using: &generator) {
        case 0..<6:
            let buffer = IOBuffer(count: range.count)
            let word = generator.next()
            for index in 0..<range.count {
                buffer.bytes[index] = UInt8(truncatingIfNeeded: word >> UInt64(index % 7)) | 1
            }
            try await device.writeAsServed(range.byteRange, from: buffer.slice)
            model.replaceSubrange(range, with: Array(buffer.bytes))
        case 6..<9:
            try await device.writeZeroes(range.byteRange, mayUnmap: generator.oneIn(2))
            model.replaceSubrange(range, with: [UInt8](repeating: 0, count: range.count))
        default:
            try await device.flush()
        }
    }

    private mutating func randomRange() -> Range<Int> {
        var bounds = (0..<2).map { _ in Int.random(in: 0...model.count, using: &generator) }
        if generator.oneIn(2) {
            bounds[1] = min(model.count, bounds[0] + Int.random(in: 0...2 * clusterSize, using: &generator))
        }
        if generator.oneIn(2) { bounds[0] -= bounds[0] % clusterSize }
        if generator.oneIn(2) { bounds[1] -= bounds[1] % clusterSize }
        return min(bounds[0], bounds[1])..<max(bounds[0], bounds[1])
    }
}

extension Range<Int> {
    var byteRange: ByteRange { ByteRange(UInt64(lowerBound)..<UInt64(upperBound)) }
}

/// A round of requests at the same time to parts of a disk that do not overlap but share clusters.
struct ConcurrentRound: Sendable {
    enum Kind: Sendable { case write(UInt8), writeZeroes(mayUnmap: Bool), flush, read }

    struct Request: Sendable {
        var range: Range<Int>
        var kind: Kind

        func make(on device: any BlockDevice) async throws {
            switch kind {
            case .write(let value):
                let buffer = IOBuffer(count: range.count)
                buffer.bytes.initializeMemory(as: UInt8.self, repeating: value)
                try await device.writeAsServed(range.byteRange, from: buffer.slice)
            case .writeZeroes(let mayUnmap): try await device.writeZeroes(range.byteRange, mayUnmap: mayUnmap)
            case .flush: try await device.flush()
            case .read:
                let buffer = IOBuffer(count: range.count)
                try await device.readAsServed(range.byteRange, into: buffer.slice)
            }
        }

        func change(_ model: inout [UInt8]) {
            switch kind {
            case .write(let value): fill(&model, value)
            case .writeZeroes: fill(&model, 0)
            case .flush, .read: break
            }
        }

        private func fill(_ model: inout [UInt8], _ value: UInt8) {
            model.withUnsafeMutableBytes {
                _ = UnsafeMutableRawBufferPointer(rebasing: $0[range]).initializeMemory(
                    as: UInt8.self, repeating: value)
            }
        }
    }

    let requests: [Request]

    init(size: Int, clusterSize: Int, count: Int = 16, _ generator: inout SeededGenerator) {
        var cuts: Set<Int> = [0, size]
        for _ in 0..<count {
            var cut = Int.random(in: 0..<size, using: &generator)
            if generator.oneIn(3) { cut -= cut % clusterSize }
            cuts.insert(cut)
            if generator.oneIn(3) {
                cuts.insert(min(size, cut + Int.random(in: 0..<clusterSize, using: &generator)))
            }
        }
        let sorted = cuts.sorted()
        var requests: [Request] = []
        for (start, end) in zip(sorted, sorted.dropFirst()) {
            let kind: Kind =
                switch Int.random(in: 0..<10, using: &generator) {
                case 0..<5: .write(UInt8.random(in: 1...255, using: &generator))
                case 5: .writeZeroes(mayUnmap: false)
                case 6: .writeZeroes(mayUnmap: true)
                case 7: .flush
                default: .read
                }
            requests.append(Request(range: start..<end, kind: kind))
        }
        self.requests = requests.shuffled(using: &generator)
    }

    /// Plays the round on the device and on the model, and compares them.
    func play(on device: any BlockDevice, _ model: inout [UInt8], _ what: String) async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for request in requests { group.addTask { try await request.make(on: device) } }
            try await group.waitForAll()
        }
        for request in requests { request.change(&model) }
        try expectEqual(try await contents(of: device), model, what)
    }
}

@Suite("Histories of qcow2 images")
struct Qcow2HistoryTests {
    @Test(
        "after each of many changes, one after another, a new image holds what was written",
        arguments: [9, 12, 16])
    func sequential(clusterBits: UInt64) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        let seed = testSeed()
        let size = 40 << clusterBits | 0x200
        try await onEngine(.ring) { engine in
            let file = try await makeEmptyFile(path, on: engine)
            let device = try await TargetImage.create(
                on: file, format: .qcow2, size: UInt64(size), backing: nil, clusterSize: 1 << clusterBits)
            var changes = RandomChanges(
                generator: SeededGenerator(seed), model: [UInt8](repeating: 0, count: size),
                clusterSize: 1 << clusterBits)
            for step in 0..<100 {
                try await changes.change(device)
                try expectEqual(try await contents(of: device), changes.model, "step \(step)")
            }
            try await device.flush()
            try await device.close()
            try await checkClean(path)
            try expectEqual(try await judge(path, in: directory), changes.model, "qemu-img's reading")
        }
    }

    @Test(
        "requests at the same time that share clusters lose nothing",
        arguments: [9, 12, 16], EngineKind.allCases)
    func concurrent(clusterBits: Int, kind: EngineKind) async throws {
        let directory = try TemporaryDirectory()
        var generator = SeededGenerator(testSeed())
        for trial in 0..<3 {
            let trialGenerator = generator.fork()
            let path = directory.file("\(trial).qcow2")
            let size = min(1500, 40 << (16 - clusterBits)) << clusterBits | 0x200
            try await onEngine(kind) { [trialGenerator] engine in
                var generator = trialGenerator
                let file = try await makeEmptyFile(path, on: engine)
                let device = try await TargetImage.create(
                    on: file, format: .qcow2, size: UInt64(size), backing: nil, clusterSize: 1 << clusterBits)
                var model = [UInt8](repeating: 0, count: size)
                for round in 0..<5 {
                    let requests = ConcurrentRound(size: size, clusterSize: 1 << clusterBits, &generator)
                    try await requests.play(on: device, &model, "trial \(trial), round \(round)")
                }
                try await device.flush()
                try await device.close()
                try await checkClean(path)
                try expectEqual(try await judge(path, in: directory), model, "qemu-img's reading")
            }
        }
    }

    @Test(
        "a process that ends between two flushes leaves leaks at worst",
        arguments: ["cluster_size=4k", "cluster_size=512"])
    func endsBetweenFlushes(options: String) async throws {
        let directory = try TemporaryDirectory()
        let (path, left) = (directory.file("a.qcow2"), directory.file("left.qcow2"))
        let size = 600 << 12
        try await qemuImg(["create", "-q", "-f", "qcow2", "-o", options, path, "\(size)"])
        try await qemuIO(path, ["write -P 1 0 1M"])
        try await qemuImg(["snapshot", "-c", "s", path])
        let seed = testSeed()
        try await onEngine { engine in
            var generator = SeededGenerator(seed)
            let target = try await TargetImage.openExisting(
                try await openForWriting(path, on: engine), format: nil)
            let image = try #require(target.device as? Qcow2Image)
            for _ in 0..<20 {
                let round = ConcurrentRound(size: size, clusterSize: 4096, &generator)
                try await withThrowingTaskGroup(of: Void.self) { group in
                    for request in round.requests { group.addTask { try await request.make(on: image) } }
                    group.addTask {
                        try await image.withWriteback { () async throws(BlockError) in
                            try await image.writeBack()
                        }
                    }
                    try await group.waitForAll()
                }
                // Not flushed: some of it is in memory only. (A copy made meanwhile would mix moments.)
                try await checkLeft(path, left)
            }
            try await image.flush()
            try await image.close()
        }
        try await checkClean(path)
    }

    /// Fails when a copy of the image as it is in the page cache has errors other than leaks.
    private func checkLeft(_ path: String, _ copy: String) async throws {
        _ = try await runProcess("cp", ["--sparse=always", path, copy])
        let result = try await qemuImg(["check", "-f", "qcow2", copy], expecting: nil)
        guard result.status == 0 || result.status == 3 else {
            throw TestKitError("qemu-img check: \(result.output)\(result.error)")
        }
    }
}
