package import BlockIO
internal import Synchronization

/// A disk in memory whose every request can be delayed, refused, held and recorded.
///
/// It is sparse: a disk of many TiB costs what is written to it. Requests of a seeded disk take a random number of turns
/// before and after they have their effect, so that they overtake each other in the same way each time on an engine
/// without other work.
package final class SimDisk: BlockDevice {
    package enum Operation: String, Sendable, Hashable, CaseIterable {
        case read, write, writeZeroes, discard, flush, extents, close
    }

    /// A request as the disk saw it.
    package struct Call: Sendable, Hashable {
        package var operation: Operation
        /// Empty for flush and close.
        package var range: ByteRange
    }

    private struct Rule {
        let operation: Operation?
        let range: ByteRange?
        var skip: Int
        var times: Int
        let error: BlockError
    }

    private struct State {
        var bytes = SparseBytes()
        var generator: SeededGenerator?
        var rules: [Rule] = []
        var calls: [Call] = []
        var isHeld: (@Sendable (Call) -> Bool)?
        var held: [(call: Call, continuation: CheckedContinuation<Void, Never>)] = []
        var inFlight = 0
        var maximumInFlight = 0

        /// The error that the rules have for a call.
        mutating func refusal(of call: Call) -> BlockError? {
            for index in rules.indices {
                let rule = rules[index]
                if let operation = rule.operation, operation != call.operation { continue }
                if let range = rule.range, !range.overlaps(call.range) { continue }
                if rule.skip > 0 {
                    rules[index].skip -= 1
                } else if rule.times > 0 {
                    rules[index].times -= 1
                    return rule.error
                }
            }
            return nil
        }
    }

    package let name: String
    package let engine: any IOEngine
    package let size: UInt64
    package let isReadOnly: Bool
    package let limits: BlockLimits
    private let maximumDelay: Int
    private let state: Mutex<State>

    /// A disk of zeroes. With a `seed`, each request takes up to `maximumDelay` turns on each side of its effect.
    package init(
        size: UInt64, engine: any IOEngine, name: String = "sim", isReadOnly: Bool = false,
        limits: BlockLimits = BlockLimits(), seed: UInt64? = nil, maximumDelay: Int = 8
    ) {
        self.size = size
        self.engine = engine
        self.name = name
        self.isReadOnly = isReadOnly
        self.limits = limits
        self.maximumDelay = maximumDelay
        state = Mutex(State(generator: seed.map(SeededGenerator.init)))
    }

    // MARK: What tests do to it

    /// Refuses requests with `error`: those of `operation` (nil: all) that touch `range` (nil: anywhere), after the first
    /// `skip` of them, and `times` of them.
    package func fail(
        _ operation: Operation? = nil, touching range: ByteRange? = nil, after skip: Int = 0,
        times: Int = .max, with error: BlockError
    ) {
        state.withLock {
            $0.rules.append(Rule(operation: operation, range: range, skip: skip, times: times, error: error))
        }
    }

    /// Takes back all `fail`s.
    package func heal() { state.withLock { $0.rules.removeAll() } }

    /// Makes requests for which `which` is true wait, before they have an effect, until `release`.
    package func hold(where which: @escaping @Sendable (Call) -> Bool = { _ in true }) {
        state.withLock { $0.isHeld = which }
    }

    /// Lets all held requests go on, and holds no more.
    package func release() {
        let held = state.withLock { state in
            state.isHeld = nil
            defer { state.held.removeAll() }
            return state.held
        }
        for entry in held { entry.continuation.resume() }
    }

    /// The requests that are being held.
    package var heldCalls: [Call] { state.withLock { $0.held.map(\.call) } }
    /// All requests so far, in the order in which they came.
    package var calls: [Call] { state.withLock { $0.calls } }
    package func forgetCalls() { state.withLock { $0.calls.removeAll() } }
    /// The largest number of requests that were in flight at the same time.
    package var maximumInFlight: Int { state.withLock { $0.maximumInFlight } }
    package var inFlight: Int { state.withLock { $0.inFlight } }

    /// The disk's bytes, read behind its back.
    package func contents(of range: ByteRange) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(range.length))
        state.withLock { state in bytes.withUnsafeMutableBytes { state.bytes.read(range, into: $0) } }
        return bytes
    }

    /// Changes the disk's bytes behind its back.
    package func setContents(at offset: UInt64, _ bytes: [UInt8]) {
        let range = ByteRange(offset: offset, length: UInt64(bytes.count))
        state.withLock { state in bytes.withUnsafeBytes { state.bytes.write(range, from: $0) } }
    }

    // MARK: BlockDevice

    package func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        precondition(UInt64(buffer.count) == range.length, "a buffer is as long as its range")
        try check(range, to: "read")
        try await serve(Call(operation: .read, range: range)) { bytes in
            bytes.read(range, into: buffer.bytes)
        }
    }

    package func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        precondition(UInt64(buffer.count) == range.length, "a buffer is as long as its range")
        try checkWritable(range, to: "write")
        try await serve(Call(operation: .write, range: range)) { bytes in
            bytes.write(range, from: UnsafeRawBufferPointer(buffer.bytes))
        }
    }

    package func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        try checkWritable(range, to: "write zeroes to")
        try await serve(Call(operation: .writeZeroes, range: range)) { $0.zero(range) }
    }

    package func discard(_ range: ByteRange) async throws(BlockError) {
        try checkWritable(range, to: "discard")
        try await serve(Call(operation: .discard, range: range)) { $0.zero(range) }
    }

    package func flush() async throws(BlockError) {
        try await serve(Call(operation: .flush, range: ByteRange(offset: 0, length: 0))) { _ in }
    }

    package func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        precondition(!range.isEmpty, "extents are asked for in a range with bytes")
        try check(range, to: "look for data in")
        return try await serve(Call(operation: .extents, range: range)) { $0.extents(in: range) }
    }

    package func close() async throws(BlockError) {
        try await serve(Call(operation: .close, range: ByteRange(offset: 0, length: 0))) { _ in }
    }

    // MARK: Parts

    private func checkWritable(_ range: ByteRange, to verb: String) throws(BlockError) {
        guard !isReadOnly else {
            throw BlockError(
                .invalid, "Couldn't \(verb) \(range) of \(name): it is open for reading only", range: range)
        }
        try check(range, to: verb)
    }

    private func serve<Result: Sendable>(
        _ call: Call, _ body: @Sendable (inout SparseBytes) -> Result
    ) async throws(BlockError) -> Result {
        engine.preconditionCurrent()
        let error = state.withLock { state in
            state.calls.append(call)
            state.inFlight += 1
            state.maximumInFlight = max(state.maximumInFlight, state.inFlight)
            return state.refusal(of: call)
        }
        defer { state.withLock { $0.inFlight -= 1 } }
        await wait(for: call)
        await delay()
        if let error { throw error }
        let result = state.withLock { body(&$0.bytes) }
        await delay()
        return result
    }

    private func wait(for call: Call) async {
        guard state.withLock({ $0.isHeld?(call) ?? false }) else { return }
        await withCheckedContinuation { continuation in
            let goesOn = state.withLock { state in
                guard state.isHeld != nil else { return true }
                state.held.append((call, continuation))
                return false
            }
            if goesOn { continuation.resume() }
        }
    }

    private func delay() async {
        let turns = state.withLock { state in
            guard var generator = state.generator else { return 0 }
            defer { state.generator = generator }
            return Int.random(in: 0...maximumDelay, using: &generator)
        }
        for _ in 0..<turns { await Task.yield() }
    }
}
