internal import BlockIO
internal import Foundation
internal import TestKit

@testable internal import DiskImages

/// One random life of a backup's target: many requests in flight, an agent that is killed and another one that takes the
/// target up, and what must be left each time; a host that loses its power, where the image has a past.
struct TargetHistory: Sendable {
    enum Kind: String, Sendable { case raw, new, existing, compressed }

    struct Shape: Sendable, CustomStringConvertible {
        var kind: Kind
        var clusterSize: Int
        var clusters: Int

        var description: String { "\(kind.rawValue), \(clusterSize >> 10) KiB" }
        var size: Int { clusters * clusterSize + clusterSize / 2 }
        var unit: Int { max(256, clusterSize / 128) }
    }

    /// What is there before the first request: the file's bytes, and the disk's.
    struct Template: Sendable {
        var shape: Shape
        var image: [UInt8]
        var content: [UInt8]
    }

    let template: Template
    let seed: UInt64
    var rules = Qcow2Rules()
    var sessions = 4

    struct Outcome: Sendable {
        var kills = 0
        var takenUp = 0
        /// The image after each crash.
        var images: [[UInt8]] = []
        /// The image when it was complete; nil after a power loss.
        var complete: [UInt8]?
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
        let (shape, path) = (template.shape, directory.file("target-\(seed)"))
        // Gone with the directory otherwise.
        defer { try? FileManager.default.removeItem(atPath: path) }
        try write(template.image, to: path)
        guard let inode = FileIdentity.of(path: path)?.inode else {
            throw TestKitError("\(path) is not there")
        }
        let diskUnit = max(shape.unit, generator.oneIn(2) ? 512 : 4096)
        var files = [inode: SimFile(template.image, unit: diskUnit)]
        var model = GuestModel(
            unit: shape.unit,
            initial: (0..<shape.size / shape.unit).map { index in
                template.content[index * shape.unit..<(index + 1) * shape.unit].withUnsafeBytes {
                    GuestModel.value(of: $0) ?? 0
                }
            })
        var (outcome, isBegun) = (Outcome(), false)
        for number in 0..<sessions {
            let canLosePower = shape.kind == .existing && number > 0
            let ending: Ending =
                number == sessions - 1
                ? .close
                : canLosePower && generator.oneIn(5) ? .powerLoss : generator.oneIn(6) ? .close : .kill
            let session = Session(
                path: path, shape: shape, rules: rules, ending: ending, isFirst: number == 0,
                model: Locked(model), isBegun: Locked(isBegun), problem: Locked(nil))
            let engine = SimFileEngine(files: files, seed: generator.next())
            do { try session.play(on: engine, &generator) } catch {
                throw TestKitError("session \(number): \(error)")
            }
            (model, files, isBegun) = (session.model.value, engine.files, session.isBegun.value)
            if number > 0 { outcome.takenUp += 1 }
            if engine.isDead {
                model.kill()
                outcome.kills += 1
                if ending == .powerLoss { files[inode]?.losePower(&generator) }
            }
            // The simulation notices a new length with the next request only, and here there may be none.
            if shape.kind == .raw, isBegun { files[inode]?.setSize(shape.size) }
            let image = files[inode]?.cache ?? []
            guard truncate(path, image.count) == 0 else { throw TestKitError("truncate: \(errno)") }
            // Before its header is there it is nothing, and nothing has been promised.
            if shape.kind != .raw, isBegun || image.prefix(4).elementsEqual([0x51, 0x46, 0x49, 0xfb]) {
                outcome.images.append(image)
                do { try check(image, isComplete: !engine.isDead) } catch {
                    throw TestKitError(
                        "session \(number), after a \(engine.isDead ? "\(ending)" : "close"): \(error)")
                }
            }
            // What a host that was started again finds is no target that anybody goes on with.
            if engine.isDead, ending == .powerLoss { return outcome }
        }
        outcome.complete = files[inode]?.cache
        return outcome
    }

    private func check(_ image: [UInt8], isComplete: Bool) throws {
        let checker = try Qcow2Checker(image)
        // It does not count what compressed clusters use.
        guard isComplete, template.shape.kind != .compressed, checker.leaks > 0 else { return }
        throw TestKitError("\(checker.leaks) leaks are left in the end")
    }

    /// From one start of the agent to its end.
    private struct Session: Sendable {
        let path: String
        let shape: Shape
        let rules: Qcow2Rules
        let ending: Ending
        let isFirst: Bool
        let model: Locked<GuestModel>
        /// The image was made.
        let isBegun: Locked<Bool>
        let problem: Locked<String?>

        func play(on engine: SimFileEngine, _ generator: inout SeededGenerator) throws {
            let seed = generator.next()
            let steps = Int.random(in: 1...(generator.oneIn(3) ? 300 : 4000), using: &generator)
            // While the image is made or taken up, or later.
            let isEarly = generator.oneIn(4)
            if ending != .close, isEarly { engine.end(after: steps / 16) {} }
            let reserve = generator.oneIn(2) ? 2 : 12
            let options = Qcow2Options(
                role: .target, reserveBytes: UInt64(reserve * shape.clusterSize), minimumReserve: 2,
                rules: rules)
            let isFinished = engine.drive {
                do {
                    let device = try await open(options, on: engine)
                    do {
                        try await live(device, engine, seed, armedAfter: isEarly ? nil : steps)
                        try await device.flush()
                    } catch {
                        // The file is to be closed whatever happened.
                        try? await device.close()
                        throw error
                    }
                    try await device.close()
                } catch {
                    if !engine.isDead { problem.withLock { $0 = "\(error)" } }
                }
            }
            if let problem = problem.value { throw TestKitError(problem) }
            guard isFinished else { throw TestKitError("a request is never answered") }
        }

        private func open(_ options: Qcow2Options, on engine: SimFileEngine) async throws -> any BlockDevice {
            let file = try await HostFile.open(path, readOnly: false, growable: true, on: engine)
            do {
                return try await device(in: file, options)
            } catch {
                try? await file.close()  // as above
                throw error
            }
        }

        private func device(in file: HostFile, _ options: Qcow2Options) async throws -> any BlockDevice {
            let size = UInt64(shape.size)
            switch shape.kind {
            case .existing, .compressed:
                if isFirst {
                    return try await TargetImage.openExisting(file, format: .qcow2, options: options).device
                }
                return try await TargetImage.resumeExisting(file, format: .qcow2, options: options).device
            case .new, .raw:
                if !isFirst {
                    do {
                        return shape.kind == .raw
                            ? try await TargetImage.resume(file, format: .raw, size: size, backing: nil)
                            : try await Qcow2Image.resume(
                                on: file, contentSize: size, backing: nil,
                                clusterSize: UInt64(shape.clusterSize), options: options)
                    } catch {
                        // Only one that was never made cannot be taken up; that one is made again.
                        if isBegun.value { throw error }
                        try await file.setSize(0)
                    }
                }
                let device: any BlockDevice =
                    shape.kind == .raw
                    ? try await TargetImage.create(on: file, format: .raw, size: size, backing: nil)
                    : try await Qcow2Image.create(
                        on: file, contentSize: size, backing: nil, clusterSize: UInt64(shape.clusterSize),
                        options: options)
                isBegun.withLock { $0 = true }
                return device
            }
        }

        private func live(
            _ device: any BlockDevice, _ engine: SimFileEngine, _ seed: UInt64, armedAfter steps: Int?
        ) async throws {
            var generator = SeededGenerator(seed)
            try await check(device)
            if ending != .close, let steps { engine.end(after: steps) {} }
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
            if !engine.isDead { try await check(device) }
        }

        /// Every unit holds what was answered, or what was on its way.
        private func check(_ device: any BlockDevice) async throws {
            let unit = shape.unit
            let bytes = try await contents(of: device, piece: UInt64(max(65536, shape.clusterSize)))
            try model.withLock { model -> String? in
                for number in 0..<model.count {
                    let value = bytes[number * unit..<(number + 1) * unit].withUnsafeBytes {
                        GuestModel.value(of: $0)
                    }
                    guard let value, model.allows(value, at: number, .afterKill) else {
                        return "unit \(number) holds \(value.map(String.init) ?? "a mixture"): "
                            + model.describe(number)
                    }
                }
                return nil
            }.map { throw TestKitError($0) }
        }
    }
}
