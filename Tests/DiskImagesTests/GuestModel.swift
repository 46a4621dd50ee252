internal import BlockIO
internal import Glibc
internal import TestKit

/// What guests have asked of a disk, and so what each unit of it may hold.
///
/// Every write has a value of its own, which fills each unit that it covers. A request that has begun and not been
/// answered may have happened or not, each unit for itself; one that was answered has happened, unless a later one
/// (begun after that) has. What must be left after a power loss was answered before a flush that was answered.
struct GuestModel: Sendable {
    struct Request: Sendable {
        enum Kind: Sendable { case write, zero(mayUnmap: Bool), discard }

        var kind: Kind
        var units: Range<Int>
        /// What each unit holds afterwards; 0 are zeroes.
        var value: UInt32
        var begin: Int
        var end = Int.max
        var isAnswered = false
        var isDurable = false

        /// Discarded units may keep what they had.
        var replaces: Bool { if case .discard = kind { false } else { true } }
    }

    let unit: Int
    private(set) var initial: [UInt32]
    private(set) var requests: [Request] = []
    private var byUnit: [[Int]]
    private var time = 0
    private var nextValue: UInt32 = 1

    init(unit: Int, initial: [UInt32]) {
        self.unit = unit
        self.initial = initial
        byUnit = Array(repeating: [], count: initial.count)
    }

    var count: Int { initial.count }

    mutating func tick() -> Int {
        time += 1
        return time
    }

    mutating func begin(_ kind: Request.Kind, _ units: Range<Int>) -> Int {
        var value: UInt32 = 0
        if case .write = kind {
            value = nextValue
            nextValue += 1
        }
        requests.append(Request(kind: kind, units: units, value: value, begin: tick()))
        for unit in units { byUnit[unit].append(requests.count - 1) }
        return requests.count - 1
    }

    mutating func answer(_ index: Int) {
        requests[index].end = tick()
        requests[index].isAnswered = true
    }

    /// Those that have been answered: a flush that begins now makes them durable.
    func answered() -> [Int] {
        requests.indices.filter { requests[$0].isAnswered && !requests[$0].isDurable }
    }

    mutating func makeDurable(_ indices: [Int]) { for index in indices { requests[index].isDurable = true } }

    /// The process was killed: what was on its way stays undecided for ever.
    mutating func kill() {
        let now = tick()
        for index in requests.indices where requests[index].end == Int.max { requests[index].end = now }
    }

    /// The disk was looked at after a power loss, and holds this now.
    mutating func restart(with values: [UInt32]) {
        initial = values
        requests = []
        byUnit = Array(repeating: [], count: initial.count)
    }

    enum Moment { case running(since: Int), afterKill, afterPowerLoss }

    /// Whether a unit may hold `value`.
    func allows(_ value: UInt32, at unit: Int, _ moment: Moment) -> Bool {
        // The latest beginning of a request that has certainly happened.
        var latest = -1
        for index in byUnit[unit] {
            let request = requests[index]
            guard request.replaces else { continue }
            let isCertain =
                switch moment {
                case .running(let since): request.isAnswered && request.end < since
                case .afterKill: request.isAnswered
                case .afterPowerLoss: request.isDurable
                }
            if isCertain { latest = max(latest, request.begin) }
        }
        if latest < 0, value == initial[unit] { return true }
        return byUnit[unit].contains { requests[$0].value == value && requests[$0].end >= latest }
    }

    func describe(_ unit: Int) -> String {
        "initially \(initial[unit])"
            + byUnit[unit].map { index in
                let request = requests[index]
                let end = request.end == Int.max ? "…" : "\(request.end)"
                return "; \(request.kind) \(request.value) in \(request.units) at \(request.begin)–\(end)"
                    + (request.isAnswered ? " answered" : "") + (request.isDurable ? " durable" : "")
            }.joined()
    }
}

extension GuestModel {
    /// The value that fills a unit; nil when its bytes are of several.
    static func value(of bytes: UnsafeRawBufferPointer) -> UInt32? {
        guard let start = bytes.baseAddress else { return nil }
        // Each word equals the one before it.
        return memcmp(start, start + 4, bytes.count - 4) == 0 ? bytes.loadUnaligned(as: UInt32.self) : nil
    }

    static func fill(_ bytes: UnsafeMutableRawBufferPointer, with value: UInt32) {
        guard let start = bytes.baseAddress else { return }
        bytes.storeBytes(of: value, as: UInt32.self)
        var done = 4
        while done < bytes.count {
            let count = min(done, bytes.count - done)
            memcpy(start + done, start, count)
            done += count
        }
    }
}
