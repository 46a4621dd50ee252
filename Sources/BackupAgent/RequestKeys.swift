/// The keys that make a retried start harmless: which job, or jobs of a group, each of them has started, for a day.
struct RequestKeys: Sendable {
    /// What a key has started.
    struct Kept: Sendable, Hashable {
        var key: String
        /// What was asked for, as `BackupSpec.fingerprint` has it.
        var request: String
        /// The id of the first job.
        var jobID: String
        var jobs: [JobNumber]
        /// Nanoseconds since 1970-01-01 UTC.
        var time: Int64
    }

    /// What has to be written down.
    enum Change: Sendable, Hashable {
        case remembered(Kept)
        case forgotten(String)
    }

    /// How long a key is known in nanoseconds.
    static let lifetime: Int64 = 24 * 3600 * 1_000_000_000

    private let bound: Int
    private var entries: [String: Kept] = [:]
    private var order: [String] = []

    /// Remembers at most `bound` keys; the oldest go first.
    ///
    /// - Parameter kept: what earlier runs have remembered, oldest first.
    init(_ kept: [Kept] = [], bound: Int = 10_000) {
        self.bound = bound
        for entry in kept { insert(entry) }
    }

    /// The jobs that the key has started before, in the order of `specs`, if it has. Throws when that was another request.
    mutating func jobs(for specs: [BackupSpec], now: Int64) throws(AgentError) -> [JobNumber]? {
        let key = Self.key(of: specs)
        guard !key.isEmpty else { return nil }
        forget(before: now - Self.lifetime)
        guard let entry = entries[key] else { return nil }
        guard entry.request == Self.request(of: specs) else {
            throw AgentError(
                .requestKeyReused,
                """
                The request key \(Identifier.quoted(key)) belongs to another request, which started the job \
                \(entry.jobID)
                """, subject: entry.jobID)
        }
        return entry.jobs
    }

    /// Whether the key of `specs` is known, whatever for.
    func know(_ specs: [BackupSpec]) -> Bool { entries[Self.key(of: specs)] != nil }

    /// Returns what has to be written down.
    mutating func remember(_ specs: [BackupSpec], jobs: [JobNumber], now: Int64) -> [Change] {
        let key = Self.key(of: specs)
        guard !key.isEmpty else { return [] }
        let entry = Kept(
            key: key, request: Self.request(of: specs), jobID: specs.first?.jobID ?? "", jobs: jobs, time: now
        )
        insert(entry)
        return [.remembered(entry)]
    }

    /// The start was refused, or its jobs are not known any more: the key is free again, unless it stands for other jobs by
    /// now. Returns what has to be written down.
    mutating func forget(_ spec: BackupSpec, jobs: [JobNumber]) -> [Change] {
        guard let entry = entries[spec.requestKey], !Set(entry.jobs).isDisjoint(with: jobs) else { return [] }
        entries[spec.requestKey] = nil
        order.removeAll { $0 == spec.requestKey }
        return [.forgotten(spec.requestKey)]
    }

    private mutating func insert(_ entry: Kept) {
        if entries.updateValue(entry, forKey: entry.key) == nil { order.append(entry.key) }
        while order.count > bound { entries[order.removeFirst()] = nil }
    }

    /// All specs of a request have its key.
    private static func key(of specs: [BackupSpec]) -> String { specs.first?.requestKey ?? "" }

    private static func request(of specs: [BackupSpec]) -> String {
        specs.map(\.fingerprint).joined(separator: "\n")
    }

    private mutating func forget(before time: Int64) {
        while let oldest = order.first, let entry = entries[oldest], entry.time < time {
            entries[oldest] = nil
            order.removeFirst()
        }
    }
}

extension BackupSpec {
    /// The request in words that are the same for the same request and no other, in later versions, too: what is not as by
    /// default, in the order of the fields.
    var fingerprint: String {
        let plain = BackupSpec(drive: "", target: "", sync: sync, jobID: "")
        let fields = zip(Mirror(reflecting: self).children, Mirror(reflecting: plain).children)
        let words = fields.compactMap { field, usual in
            let (value, usualValue) = (String(reflecting: field.value), String(reflecting: usual.value))
            return value == usualValue ? nil : "\(field.label ?? "")=\(value)"
        }
        return (words + ["sync=\(sync.rawValue)"]).joined(separator: " ")
    }
}
