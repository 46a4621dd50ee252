package import BlockIO

/// What every `BlockDevice` must do, tried out with random histories against an array of bytes.
///
/// Each round makes many requests at once to parts that do not overlap (but share blocks and clusters) and compares
/// afterwards; in between, everything is read back, extents are held against the bytes, and impossible requests must
/// be refused.
package struct Conformance: Sendable {
    /// The device's size in bytes; small, since an array of that size is the model.
    package var size: UInt64
    package var seed: UInt64
    package var rounds = 30
    package var requestsPerRound = 16
    /// A growable file takes writes beyond its end.
    package var refusesBeyondEnd = true
    /// The device's contents at first; nil: zeroes.
    package var contents: [UInt8]?

    package init(size: UInt64, seed: UInt64 = testSeed()) {
        self.size = size
        self.seed = seed
    }

    package typealias Maker = @Sendable (any IOEngine) async throws -> any BlockDevice

    /// Tries the devices that `make` makes on both kinds of engine; `make` is called on the engine, and so is `reopen`,
    /// when there is one, after the first device was flushed and closed. Throws what is wrong.
    package func check(of make: @escaping Maker, reopened reopen: Maker? = nil) async throws {
        for kind in EngineKind.allCases {
            let engine = try kind.makeEngine(name: "conformance")
            let result: Result<Void, any Error> = await engine.run {
                do {
                    try await check(on: engine, make, reopen)
                    return .success(())
                } catch {
                    return .failure(error)
                }
            }
            await engine.shutDown()
            do {
                try result.get()
            } catch {
                throw TestKitError("On \(kind.rawValue), seed \(seed): \(error)")
            }
        }
    }

    private func check(on engine: any IOEngine, _ make: Maker, _ reopen: Maker?) async throws {
        var generator = SeededGenerator(seed)
        let device = try await make(engine)
        guard device.size == size else { throw TestKitError("The size is \(device.size), not \(size)") }
        var history = History(
            device: device, model: contents ?? [UInt8](repeating: 0, count: Int(size)),
            generator: generator.fork())
        try await checkRefusals(device)
        try await history.compareAll()
        for round in 0..<rounds {
            do {
                try await history.playRound(requests: requestsPerRound)
                if round % 5 == 4 { try await history.compareAll() }
            } catch {
                throw TestKitError("Round \(round): \(error)")
            }
        }
        try await history.compareAll()
        try await device.flush()
        try await device.close()
        guard let reopen else { return }
        history.device = try await reopen(engine)
        do {
            try await history.compareAll()
        } catch {
            throw TestKitError("After reopening: \(error)")
        }
        try await history.device.close()
    }

    private func checkRefusals(_ device: any BlockDevice) async throws {
        let unit = device.limits.requestAlignment
        let buffer = IOBuffer(count: Int(unit) * 2)
        let beyond = ByteRange(offset: size.roundedDown(toMultipleOf: unit), length: unit * 2)
        let far = ByteRange(offset: UInt64.max - unit * 2 - UInt64.max % unit, length: unit * 2)
        for range in [beyond, far] {
            try await expectInvalid("read") { () async throws(BlockError) in
                try await device.read(range, into: buffer.slice)
            }
            try await expectInvalid("extents") { () async throws(BlockError) in
                _ = try await device.extents(in: range)
            }
            guard refusesBeyondEnd || device.isReadOnly || range == far else { continue }
            try await expectInvalid("write") { () async throws(BlockError) in
                try await device.write(range, from: buffer.slice)
            }
            try await expectInvalid("writeZeroes") { () async throws(BlockError) in
                try await device.writeZeroes(range, mayUnmap: true)
            }
        }
        let nothing = ByteRange(offset: size, length: 0)
        try await device.read(nothing, into: buffer[0..<0])
        if device.isReadOnly {
            let start = ByteRange(offset: 0, length: min(unit, size))
            try await expectInvalid("write") { () async throws(BlockError) in
                try await device.write(start, from: buffer[0..<Int(start.length)])
            }
            try await expectInvalid("writeZeroes") { () async throws(BlockError) in
                try await device.writeZeroes(start, mayUnmap: false)
            }
        } else {
            try await device.write(nothing, from: buffer[0..<0])
            try await device.writeZeroes(nothing, mayUnmap: true)
            try await device.discard(nothing)
        }
    }

    private func expectInvalid(_ what: String, _ body: () async throws(BlockError) -> Void) async throws {
        do {
            try await body()
        } catch {
            guard error.code == .invalid else {
                throw TestKitError("An impossible \(what) got \(error.code.rawValue): \(error)")
            }
            return
        }
        throw TestKitError("An impossible \(what) was not refused")
    }
}
