internal import BlockIO
internal import Foundation
internal import TestKit

@testable internal import DiskImages

/// One random life of a qcow2 drive: guests with many requests in flight, an agent that is killed, a host that loses its
/// power, and what must be left each time.
struct CrashHistory: Sendable {
    struct Shape: Sendable, CustomStringConvertible {
        var clusterSize: Int
        var hasBacking: Bool
        var clusters: Int

        var description: String { "\(clusterSize >> 10) KiB\(hasBacking ? " on a backing file" : "")" }
        var size: Int { clusters * clusterSize + clusterSize / 2 }
        /// What requests are made of; smaller than a sector of the disk where that is not too much to check.
        var unit: Int { max(256, clusterSize / 128) }
    }

    /// Images made by qemu-img, and their backing file, to begin with.
    struct Template: Sendable {
        var shape: Shape
        var image: [UInt8]
        var backingPath: String
        var backing: [UInt8]
    }

    let template: Template
    let seed: UInt64
    var rules = Qcow2Rules()
    var sessions = 4

    /// What came of it, to see that the histories are worth something.
    struct Outcome: Sendable {
        var kills = 0
        var powerLosses = 0
        var requests = 0
        var largestFile = 0
        /// The image after each crash, and at the end.
        var images: [[UInt8]] = []
    }

    private enum Ending: Equatable { case close, kill, powerLoss }

    /// Plays it in `directory`; blocks. Throws what is wrong.
    func play(in directory: TemporaryDirectory) throws -> Outcome {
        do {
            return try playAll(in: directory)
        } catch {
            throw TestKitError("\(template.shape), seed \(seed): \(error)")
        }
    }

    private func playAll(in directory: TemporaryDirectory) throws -> Outcome {
        var generator = SeededGenerator(seed)
        let path = directory.file("drive-\(seed).qcow2")
        let journals = directory.file("journals-\(seed)")
        try FileManager.default.createDirectory(atPath: journals, withIntermediateDirectories: true)
        defer {
            // Gone with the directory otherwise.
            try? FileManager.default.removeItem(atPath: path)
            try? FileManager.default.removeItem(atPath: journals)
        }
        try write(template.image, to: path)
        let unit = template.shape.unit
        // What lands, or is lost, at once; never less than what is checked.
        let diskUnit = max(unit, generator.oneIn(2) ? 512 : 4096)
        let inode = try Self.inode(of: path)
        let backing = try Self.inode(of: template.backingPath)
        var files = [
            inode: SimFile(template.image, unit: diskUnit),
            backing: SimFile(template.backing, unit: max(unit, 4096)),
        ]
        var model = GuestModel(
            unit: unit,
            initial: (0..<template.shape.size / unit).map { index in
                let place = index * unit
                guard template.shape.hasBacking, place + unit <= template.backing.count else { return 0 }
                return template.backing[place..<place + unit].withUnsafeBytes {
                    GuestModel.value(of: $0) ?? 0
                }
            })
        var outcome = Outcome()
        var last = Ending.close
        for number in 0..<sessions {
            let isLast = number == sessions - 1
            let ending: Ending =
                isLast ? .close : generator.oneIn(3) ? .powerLoss : generator.oneIn(6) ? .close : .kill
            let session = Session(
                path: path, journals: journals, shape: template.shape, rules: rules, ending: ending,
                last: last, isLast: isLast, model: Locked(model), journal: Locked([:]), problem: Locked(nil),
                wasLookedAt: Locked(false))
            let engine = SimFileEngine(files: files, seed: generator.next())
            try session.play(on: engine, &generator)
            model = session.model.value
            files = engine.files
            outcome.requests = model.requests.count
            outcome.largestFile = max(outcome.largestFile, files[inode]?.cache.count ?? 0)
            let wasLookedAt = session.wasLookedAt.value
            let before = last
            last = engine.isDead ? ending : .close
            try session.restoreJournals(isKept: last == .kill)
            switch last {
            case .close: break
            case .kill: outcome.kills += 1
            case .powerLoss:
                outcome.powerLosses += 1
                files[inode]?.losePower(&generator)
            }
            if last != .close { model.kill() }
            // A power loss that nobody has seen the result of before the next crash.
            if before == .powerLoss, !wasLookedAt { last = .powerLoss }
            let image = files[inode]?.cache ?? []
            let checker: Qcow2Checker
            do {
                checker = try Qcow2Checker(image)
            } catch {
                throw TestKitError("session \(number), after \(last): \(error)")
            }
            outcome.images.append(image)
            if last == .close, ending == .close, outcome.powerLosses == 0, outcome.kills == 0,
                checker.leaks > 0
            {
                throw TestKitError("session \(number) leaves \(checker.leaks) leaks")
            }
            // The file that is looked at next time has this length.
            guard truncate(path, image.count) == 0 else { throw TestKitError("truncate: \(errno)") }
        }
        return outcome
    }

    private static func inode(of path: String) throws -> UInt64 {
        guard let identity = FileIdentity.of(path: path) else { throw TestKitError("\(path) is not there") }
        return identity.inode
    }

    /// From one start of the agent to its end.
    private struct Session: Sendable {
        let path: String
        let journals: String
        let shape: Shape
        let rules: Qcow2Rules
        let ending: Ending
        let last: Ending
        let isLast: Bool
        let model: Locked<GuestModel>
        /// What the journals held when the process ended.
        let journal: Locked<[String: [UInt8]]>
        let problem: Locked<String?>
        let wasLookedAt: Locked<Bool>

        func play(on engine: SimFileEngine, _ generator: inout SeededGenerator) throws {
            let seed = generator.next()
            // Most deaths while guests are at work, some while the journal is replayed or the drive closed.
            let steps = Int.random(in: 1...(generator.oneIn(4) ? 400 : 6000), using: &generator)
            let isEarly = generator.oneIn(5)
            if ending != .close, isEarly { arm(engine, steps / 8) }
            let reserve = generator.oneIn(2) ? 2 : 12
            let records = [4, 16, 64, 4096].randomElement(using: &generator) ?? 64
            let options = Qcow2Options(
                role: .drive, journalDirectory: journals,
                journalRecords: rules == Qcow2Rules() ? records : 4096,
                reserveBytes: UInt64(reserve * shape.clusterSize), minimumReserve: 2, rules: rules)
            let isFinished = engine.drive {
                do {
                    let image = try await OpenImage.open(
                        path, format: .qcow2, readOnly: false, gate: .open, options: options, on: engine)
                    do {
                        try await live(image, engine, seed, armedAfter: isEarly ? nil : steps)
                    } catch {
                        // The files are to be closed whatever happened.
                        try? await image.close()
                        throw error
                    }
                    try await image.close()
                } catch {
                    if !engine.isDead { problem.withLock { $0 = "\(error)" } }
                }
            }
            if let problem = problem.value { throw TestKitError(problem) }
            guard isFinished else { throw TestKitError("a request is never answered") }
        }

        private func live(
            _ image: OpenImage, _ engine: SimFileEngine, _ seed: UInt64, armedAfter steps: Int?
        ) async throws {
            var generator = SeededGenerator(seed)
            let device = image.device
            let values = try await readAll(device)
            try model.withLock { model in
                Result { try Self.check(values, &model, last) }
            }.get()
            wasLookedAt.withLock { $0 = true }
            try await image.takeWritePermission()
            if ending != .close, let steps { arm(engine, steps) }
            let guests = (0..<Int.random(in: 1...8, using: &generator)).map { _ in generator.fork() }
            let count = ending == .close ? 15 : 400
            let churns = generator.oneIn(2)
            await withTaskGroup(of: Void.self) { group in
                for guest in guests {
                    group.addTask {
                        var guest = Guest(
                            device: device, engine: engine, model: model, generator: guest,
                            clusterSize: shape.clusterSize, churns: churns)
                        do {
                            for _ in 0..<count { try await guest.act() }
                        } catch {
                            if !engine.isDead {
                                problem.withLock { if $0 == nil { $0 = "\(error)" } }
                            }
                        }
                    }
                }
            }
            guard !engine.isDead else { return }
            let now = try await readAll(device)
            try model.withLock { model in Result { try Self.check(now, &model, .kill) } }.get()
        }

        private static func check(_ values: [UInt32?], _ model: inout GuestModel, _ last: Ending) throws {
            let moment = last == .powerLoss ? GuestModel.Moment.afterPowerLoss : .afterKill
            for (unit, value) in values.enumerated() {
                guard let value, model.allows(value, at: unit, moment) else {
                    throw TestKitError(
                        "after \(last) unit \(unit) holds \(value.map(String.init) ?? "a mixture"): "
                            + model.describe(unit))
                }
            }
            if last == .powerLoss { model.restart(with: values.map { $0 ?? 0 }) }
        }

        private func readAll(_ device: any BlockDevice) async throws -> [UInt32?] {
            let unit = shape.unit
            let bytes = try await contents(of: device, piece: UInt64(max(65536, shape.clusterSize)))
            return bytes.withUnsafeBytes { bytes in
                (0..<bytes.count / unit).map {
                    GuestModel.value(of: UnsafeRawBufferPointer(rebasing: bytes[$0 * unit..<($0 + 1) * unit]))
                }
            }
        }

        private func arm(_ engine: SimFileEngine, _ steps: Int) {
            engine.end(after: steps) {
                for name in (try? FileManager.default.contentsOfDirectory(atPath: journals)) ?? [] {
                    let bytes = (try? DiskImagesTests.bytes(of: journals + "/" + name)) ?? []
                    journal.withLock { $0[name] = bytes }
                }
            }
        }

        /// Puts the journals back as the end of the process left them; a power loss leaves none.
        func restoreJournals(isKept: Bool) throws {
            let kept = journal.value
            guard isKept || ending == .powerLoss else { return }
            for name in try FileManager.default.contentsOfDirectory(atPath: journals) {
                try FileManager.default.removeItem(atPath: journals + "/" + name)
            }
            guard isKept else { return }
            for (name, bytes) in kept { try write(bytes, to: journals + "/" + name) }
        }
    }
}

/// Makes one request after another.
struct Guest {
    let device: any BlockDevice
    let engine: SimFileEngine
    let model: Locked<GuestModel>
    var generator: SeededGenerator
    let clusterSize: Int
    /// Clusters are freed and used again all the time.
    let churns: Bool

    mutating func act() async throws {
        let units = chooseUnits()
        switch Int.random(in: 0..<20, using: &generator) {
        case 0..<(churns ? 7 : 11): try await request(.write, units)
        case ..<13: try await request(.zero(mayUnmap: generator.oneIn(2)), units)
        case ..<16: try await request(.discard, units)
        case ..<18: try await read(units)
        default: try await flush()
        }
    }

    private mutating func chooseUnits() -> Range<Int> {
        let (count, unit) = model.withLock { ($0.count, $0.unit) }
        let perCluster = clusterSize / unit
        var start = Int.random(in: 0..<count, using: &generator)
        var length = Int.random(in: 1...(generator.oneIn(4) ? perCluster * 2 : 8), using: &generator)
        if generator.oneIn(3) {
            start -= start % perCluster
            if generator.oneIn(2) { length = perCluster * Int.random(in: 1...2, using: &generator) }
        }
        // Often the same few clusters, so that requests meet.
        if generator.oneIn(2) { start %= perCluster * 3 }
        return start..<min(count, start + length)
    }

    private func bytes(_ units: Range<Int>) -> ByteRange {
        let unit = model.withLock { $0.unit }
        return (units.lowerBound * unit..<units.upperBound * unit).byteRange
    }

    private func request(_ kind: GuestModel.Request.Kind, _ units: Range<Int>) async throws {
        let (range, index) = (bytes(units), model.withLock { $0.begin(kind, units) })
        switch kind {
        case .write:
            let buffer = IOBuffer(count: Int(range.length))
            GuestModel.fill(buffer.bytes, with: model.withLock { $0.requests[index].value })
            try await device.writeAsServed(range, from: buffer.slice)
        case .zero(let mayUnmap): try await device.writeZeroes(range, mayUnmap: mayUnmap)
        case .discard: try await device.discard(range)
        }
        // The dead answer nobody.
        guard !engine.isDead else { throw TestKitError("dead") }
        model.withLock { $0.answer(index) }
    }

    private func read(_ units: Range<Int>) async throws {
        let (range, since) = (bytes(units), model.withLock { $0.tick() })
        let buffer = IOBuffer(count: Int(range.length))
        try await device.readAsServed(range, into: buffer.slice)
        guard !engine.isDead else { throw TestKitError("dead") }
        let unit = Int(range.length) / units.count
        for (index, number) in units.enumerated() {
            let value = GuestModel.value(
                of: UnsafeRawBufferPointer(buffer[index * unit..<(index + 1) * unit].bytes))
            try model.withLock { model -> String? in
                guard let value else { return "a mixture" }
                return model.allows(value, at: number, .running(since: since))
                    ? nil : "\(value): \(model.describe(number))"
            }.map { throw TestKitError("a read since \(since) of unit \(number) finds \($0)") }
        }
    }

    private func flush() async throws {
        let answered = model.withLock { $0.answered() }
        try await device.flush()
        guard !engine.isDead else { throw TestKitError("dead") }
        model.withLock { $0.makeDurable(answered) }
    }
}
