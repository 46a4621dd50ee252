internal import BlockIO
internal import Glibc

/// Random requests to a device and to an array of bytes that says what it must hold.
struct History {
    private enum Action: Sendable { case read, write, writeZeroes(mayUnmap: Bool), discard, extents, flush }

    private struct Request: Sendable {
        let action: Action
        let range: ByteRange
        /// What `range` holds before the request.
        let before: [UInt8]
        /// What it holds afterwards.
        let after: [UInt8]
    }

    var device: any BlockDevice
    private var model: [UInt8]
    private var generator: SeededGenerator

    init(device: any BlockDevice, model: [UInt8], generator: SeededGenerator) {
        self.device = device
        self.model = model
        self.generator = generator
    }

    /// Makes requests to parts that do not overlap, all at the same time.
    mutating func playRound(requests count: Int) async throws {
        let requests = makeRequests(count)
        let device = device
        let results = try await withThrowingTaskGroup(of: (Int, [UInt8]).self) { group in
            for (index, request) in requests.enumerated() {
                group.addTask { (index, try await Self.play(request, on: device)) }
            }
            var results = [[UInt8]](repeating: [], count: requests.count)
            for try await (index, bytes) in group { results[index] = bytes }
            return results
        }
        for (request, bytes) in zip(requests, results) where !bytes.isEmpty {
            model.replaceSubrange(Int(request.range.offset)..<Int(request.range.end), with: bytes)
        }
    }

    private mutating func makeRequests(_ count: Int) -> [Request] {
        let unit = device.limits.requestAlignment
        let units = (UInt64(model.count) + unit - 1) / unit
        // Cuts at random places; parts between them, of very different lengths, do not overlap.
        var cuts = Set<UInt64>([0, units])
        for _ in 0..<count - 1 {
            let cut = UInt64.random(in: 0...units, using: &generator)
            cuts.insert(cut)
            if generator.oneIn(3) {
                cuts.insert(min(units, cut + UInt64.random(in: 1...16, using: &generator)))
            }
        }
        let sorted = cuts.sorted()
        var requests: [Request] = []
        for (start, end) in zip(sorted, sorted.dropFirst()) {
            let range = ByteRange(start * unit..<min(end * unit, UInt64(model.count)))
            let before = Array(model[Int(range.offset)..<Int(range.end)])
            let action = chooseAction()
            requests.append(
                Request(action: action, range: range, before: before, after: outcome(of: action, before)))
        }
        return requests.shuffled(using: &generator)
    }

    private mutating func chooseAction() -> Action {
        switch Int.random(in: 0..<(device.isReadOnly ? 4 : 16), using: &generator) {
        case 0...2: .read
        case 3: .extents
        case 4...10: .write
        case 11: .writeZeroes(mayUnmap: true)
        case 12: .writeZeroes(mayUnmap: false)
        case 13: .discard
        case 14: .extents
        default: .flush
        }
    }

    private mutating func outcome(of action: Action, _ before: [UInt8]) -> [UInt8] {
        switch action {
        case .write:
            // Zeroes too: devices that look for them must not lose them.
            if generator.oneIn(6) { return [UInt8](repeating: 0, count: before.count) }
            return randomBytes(before.count)
        case .writeZeroes: return [UInt8](repeating: 0, count: before.count)
        case .read, .discard, .extents, .flush: return before
        }
    }

    /// Bytes without zeroes, so that a lost or misplaced one shows; quick in debug builds, too.
    private mutating func randomBytes(_ count: Int) -> [UInt8] {
        var words = [UInt64](repeating: 0, count: (count + 7) / 8)
        for index in words.indices { words[index] = generator.next() | 0x0101_0101_0101_0101 }
        return words.withUnsafeBytes { Array($0.prefix(count)) }
    }

    private static func isZero(_ bytes: ArraySlice<UInt8>) -> Bool {
        bytes.withUnsafeBytes { ZeroDetection.isZero($0) }
    }

    /// Makes the request, checks what can be checked, and returns what the range holds now.
    private static func play(_ request: Request, on device: any BlockDevice) async throws -> [UInt8] {
        let range = request.range
        switch request.action {
        case .read:
            try compare(try await read(range, of: device), request.before, range, "read")
        case .write:
            // Not at the buffer's start: memory need not be aligned.
            let buffer = IOBuffer(count: request.after.count + 24)
            let slice = buffer[8..<8 + request.after.count]
            slice.bytes.copyBytes(from: request.after)
            try await device.write(range, from: slice)
            if ZeroDetection.isZero(slice.bytes) != isZero(request.after[...]) {
                throw TestKitError("A write of \(range) changed the buffer")
            }
        case .writeZeroes(let mayUnmap): try await device.writeZeroes(range, mayUnmap: mayUnmap)
        case .discard:
            try await device.discard(range)
            let now = try await read(range, of: device)
            guard !isZero(now[...]), !areEqual(now, request.before) else { return now }
            for index in now.indices where now[index] != 0 && now[index] != request.before[index] {
                throw TestKitError(
                    "After a discard of \(range) byte \(index) of it is neither the old one nor zero")
            }
            return now
        case .extents: try await checkExtents(of: range, device, request.before)
        case .flush: try await device.flush()
        }
        return request.after
    }

    /// Reads everything in pieces, and compares it and the extents with the model.
    mutating func compareAll() async throws {
        let unit = device.limits.requestAlignment
        var rest = ByteRange(offset: 0, length: UInt64(model.count))
        while !rest.isEmpty {
            let length = UInt64.random(in: 1...max(1, 300_000 / unit), using: &generator) * unit
            let piece = rest.prefix(length)
            let expected = Array(model[Int(piece.offset)..<Int(piece.end)])
            try Self.compare(try await Self.read(piece, of: device), expected, piece, "read")
            rest = rest.dropFirst(length)
        }
        if !model.isEmpty { try await Self.checkExtents(of: device.range, device, model) }
    }

    private static func read(_ range: ByteRange, of device: any BlockDevice) async throws -> [UInt8] {
        let count = Int(range.length)
        let buffer = IOBuffer(count: count + 64)
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0xa5)
        try await device.read(range, into: buffer[32..<32 + count])
        for guarded in [0..<32, 32 + count..<count + 64] {
            for position in guarded where buffer.bytes[position] != 0xa5 {
                throw TestKitError("A read of \(range) wrote outside of its buffer")
            }
        }
        return Array(buffer[32..<32 + count].bytes)
    }

    private static func checkExtents(
        of range: ByteRange, _ device: any BlockDevice, _ model: [UInt8]
    ) async throws {
        var rest = range
        while !rest.isEmpty {
            let extents = try await device.extents(in: rest)
            guard let last = extents.last else { throw TestKitError("No extents for \(rest)") }
            var position = rest.offset
            for extent in extents {
                guard extent.range.offset == position, !extent.range.isEmpty, rest.contains(extent.range)
                else {
                    throw TestKitError(
                        "The extents of \(rest) have \(extent.range) where \(position) was due")
                }
                position = extent.range.end
                let start = Int(extent.range.offset - range.offset)
                if extent.isZero && !isZero(model[start..<start + Int(extent.range.length)]) {
                    throw TestKitError("\(extent.range) is said to be zero, and is not")
                }
            }
            rest = rest.dropFirst(last.range.end - rest.offset)
        }
    }

    private static func areEqual(_ one: [UInt8], _ other: [UInt8]) -> Bool {
        guard one.count == other.count else { return false }
        return one.withUnsafeBytes { one in
            other.withUnsafeBytes { other in
                guard let first = one.baseAddress, let second = other.baseAddress else { return true }
                return memcmp(first, second, one.count) == 0
            }
        }
    }

    private static func compare(
        _ found: [UInt8], _ expected: [UInt8], _ range: ByteRange, _ what: String
    ) throws {
        guard !areEqual(found, expected) else { return }
        let index = zip(found, expected).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? 0
        throw TestKitError(
            "A \(what) of \(range) has \(found[index]) at offset \(range.offset + UInt64(index)), "
                + "not \(expected[index])")
    }
}
