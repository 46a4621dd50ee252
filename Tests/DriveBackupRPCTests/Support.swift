import DriveBackupWire
import Foundation

@testable import DriveBackupRPC

/// SplitMix64.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// The seed of a random test: $DRIVE_BACKUP_SEED, or a new one. It is printed.
func testSeed(_ test: String = #function) -> UInt64 {
    let given = ProcessInfo.processInfo.environment["DRIVE_BACKUP_SEED"].flatMap { UInt64($0) }
    let seed = given ?? UInt64.random(in: 0 ... .max)
    print("\(test): DRIVE_BACKUP_SEED=\(seed)")
    return seed
}

/// How many rounds a random test plays: $DRIVE_BACKUP_HISTORIES, or `usual`.
func testRounds(_ usual: Int) -> Int {
    ProcessInfo.processInfo.environment["DRIVE_BACKUP_HISTORIES"].flatMap { Int($0) } ?? usual
}

/// A frame's bytes, right or wrong.
func raw(
    _ type: UInt8, stream: UInt32 = 0, flags: UInt8 = 0, reserved: UInt16 = 0, length: UInt32? = nil,
    _ payload: [UInt8] = []
) -> [UInt8] {
    var bytes: [UInt8] = []
    withUnsafeBytes(of: (length ?? UInt32(payload.count)).bigEndian) { bytes.append(contentsOf: $0) }
    withUnsafeBytes(of: stream.bigEndian) { bytes.append(contentsOf: $0) }
    bytes += [type, flags]
    withUnsafeBytes(of: reserved.bigEndian) { bytes.append(contentsOf: $0) }
    return bytes + payload
}

func hello(maxPayload: UInt32 = 0, credit: UInt64 = 65536) -> [UInt8] {
    raw(1, Frames.Hello(protocolVersion: 1, maxPayload: maxPayload, initialCredit: credit).encoded)
}

func call(
    _ stream: UInt32, _ method: String = "known", end: Bool = true, timeout: UInt64 = 0, message: [UInt8] = []
) -> [UInt8] {
    raw(
        2, stream: stream, flags: end ? 1 : 0,
        Frames.Call(method: method, timeoutNs: timeout, message: message).encoded)
}

func credit(_ stream: UInt32, _ bytes: UInt64) -> [UInt8] {
    raw(6, stream: stream, Frames.Credit(bytes: bytes).encoded)
}

/// What a side has sent, cut into frames.
func frames(_ bytes: [UInt8]) throws -> [(header: FrameHeader, payload: [UInt8])] {
    var decoder = FrameDecoder(limit: FrameHeader.maxPayload)
    var result: [(header: FrameHeader, payload: [UInt8])] = []
    try bytes.withUnsafeBytes { bytes in
        var input = bytes
        while case .frame(let header, let payload)? = try decoder.next(&input) {
            result.append((header, payload))
        }
    }
    return result
}

/// A server's machine with what it has said and asked for.
struct MachineUnderTest {
    var machine: ServerMachine
    let budget: ByteBudget
    var now: Int64 = 0
    var effects: [ServerMachine.Effect] = []
    var sent: [UInt8] = []

    init(limits: RPCLimits = RPCLimits()) {
        budget = ByteBudget(capacity: limits.maxBytesInFlight)
        machine = ServerMachine(limits: limits, budget: budget, now: 0) { $0 == "known" }
    }

    mutating func receive(_ bytes: [UInt8]) {
        let now = now
        effects += bytes.withUnsafeBytes { machine.receive($0, now: now) }
        collect()
    }

    mutating func collect() {
        effects += machine.tick(now: now)
        let work = machine.work(now: now)
        sent += work.bytes
        effects += machine.wrote(work.bytes.count, now: now)
    }

    mutating func finish(_ stream: UInt32, _ status: RPCStatus = .ok) {
        effects += machine.finish(stream, status, now: now)
        machine.handlerEnded(stream)
        collect()
    }

    var dispatched: [IncomingCall] {
        effects.compactMap { if case .dispatch(let call) = $0 { call } else { nil } }
    }

    var cancelled: [UInt32] {
        effects.compactMap { if case .cancel(let stream) = $0 { stream } else { nil } }
    }

    /// The statuses sent so far.
    func statuses() throws -> [UInt32: RPCCode] {
        var result: [UInt32: RPCCode] = [:]
        for (header, payload) in try frames(sent) where header.type == .status {
            result[header.stream] = try RPCStatus(Frames.Status.decode(payload)).code
        }
        return result
    }

    /// The reason of the GOAWAY, if one was sent.
    func goAway() throws -> RPCStatus? {
        for (header, payload) in try frames(sent) where header.type == .goAway {
            return try Frames.GoAway.decode(payload).status.map { RPCStatus($0) }
        }
        return nil
    }
}
