/// The keys that make a retried start harmless: which job each of them has started, for a day.
struct RequestKeys: Sendable {
    private struct Entry: Sendable {
        var spec: BackupSpec
        var job: JobNumber
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

    /// The job that the key has started before, if it has. Throws when that was another request.
    mutating func job(for spec: BackupSpec, now: Int64) throws(AgentError) -> JobNumber? {
        guard !spec.requestKey.isEmpty else { return nil }
        forget(before: now - Self.lifetime)
        guard let entry = entries[spec.requestKey] else { return nil }
        guard entry.spec == spec else {
            throw AgentError(
                .requestKeyReused,
                "The request key \(Identifier.quoted(spec.requestKey)) belongs to another request, which "
                    + "started the job \(entry.spec.jobID)", subject: entry.spec.jobID)
        }
        return entry.job
    }

    mutating func remember(_ spec: BackupSpec, job: JobNumber, now: Int64) {
        guard !spec.requestKey.isEmpty else { return }
        if entries.updateValue(Entry(spec: spec, job: job, time: now), forKey: spec.requestKey) == nil {
            order.append(spec.requestKey)
        }
        while order.count > bound { entries[order.removeFirst()] = nil }
    }

    /// The start was refused: the key is free again.
    mutating func forget(_ spec: BackupSpec) {
        guard !spec.requestKey.isEmpty else { return }
        entries[spec.requestKey] = nil
        order.removeAll { $0 == spec.requestKey }
    }

    private mutating func forget(before time: Int64) {
        while let oldest = order.first, let entry = entries[oldest], entry.time < time {
            entries[oldest] = nil
            order.removeFirst()
        }
    }
}
