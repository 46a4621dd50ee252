/// The keys that make a retried start harmless: which job, or jobs of a group, each of them has started, for a day.
struct RequestKeys: Sendable {
    private struct Entry: Sendable {
        var specs: [BackupSpec]
        var jobs: [JobNumber]
        var time: Int64
    }

    /// How long a key is known in nanoseconds.
    static let lifetime: Int64 = 24 * 3600 * 1_000_000_000

    private let bound: Int
    private var entries: [String: Entry] = [:]
    private var order: [String] = []

    /// Remembers at most `bound` keys; the oldest go first.
    init(bound: Int = 10_000) {
        self.bound = bound
    }

    /// The jobs that the key has started before, in the order of `specs`, if it has. Throws when that was another request.
    mutating func jobs(for specs: [BackupSpec], now: Int64) throws(AgentError) -> [JobNumber]? {
        let key = Self.key(of: specs)
        guard !key.isEmpty else { return nil }
        forget(before: now - Self.lifetime)
        guard let entry = entries[key] else { return nil }
        guard entry.specs == specs else {
            let id = entry.specs.first?.jobID ?? ""
            throw AgentError(
                .requestKeyReused,
                "The request key \(Identifier.quoted(key)) belongs to another request, which started the job \(id)",
                subject: id)
        }
        return entry.jobs
    }

    mutating func remember(_ specs: [BackupSpec], jobs: [JobNumber], now: Int64) {
        let key = Self.key(of: specs)
        guard !key.isEmpty else { return }
        if entries.updateValue(Entry(specs: specs, jobs: jobs, time: now), forKey: key) == nil {
            order.append(key)
        }
        while order.count > bound { entries[order.removeFirst()] = nil }
    }

    /// The start was refused: the key is free again.
    mutating func forget(_ spec: BackupSpec) {
        guard !spec.requestKey.isEmpty else { return }
        entries[spec.requestKey] = nil
        order.removeAll { $0 == spec.requestKey }
    }

    /// All specs of a request have its key.
    private static func key(of specs: [BackupSpec]) -> String { specs.first?.requestKey ?? "" }

    private mutating func forget(before time: Int64) {
        while let oldest = order.first, let entry = entries[oldest], entry.time < time {
            entries[oldest] = nil
            order.removeFirst()
        }
    }
}
