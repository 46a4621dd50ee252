internal import Foundation
internal import GRDB

// What has happened, for as long as it is worth knowing.
//
// What the wire says of a job or an event is kept as it is on the wire: the schema grows, and never changes what a field
// means, so that a later version reads what an earlier one has written and nothing is lost on the way. The columns beside
// it are for finding, and for people with sqlite3.

extension StateStore {
    /// An event, progress never.
    struct StoredEvent: Sendable, Hashable {
        var sequence: UInt64
        /// Nanoseconds since 1970-01-01 UTC.
        var time: Int64
        var job: JobNumber
        var jobID: String
        /// Which event it is: the name of its case in the schema.
        var kind: String
        /// A `drivebackup.v1.JobEvent`.
        var body: [UInt8]
    }

    /// An ended job.
    struct EndedJob: Sendable, Hashable {
        var number: JobNumber
        var id: String
        var drive: String
        var target: String
        var result: String
        /// Empty where there is none.
        var error: String
        /// Nanoseconds since 1970-01-01 UTC, as the next.
        var createdAt: Int64
        var endedAt: Int64
        var bytes: Int64
        /// The number of its last event.
        var lastSequence: UInt64
        /// A `drivebackup.v1.Job`.
        var body: [UInt8]
    }

    /// What is kept in one step: all of it or nothing.
    struct HistoryBatch: Sendable {
        var events: [StoredEvent] = []
        var jobs: [EndedJob] = []
        var keys: [RequestKeys.Change] = []
        /// Event and job numbers up to these may be given out.
        var sequence: UInt64?
        var jobNumber: UInt64?

        var isEmpty: Bool {
            events.isEmpty && jobs.isEmpty && keys.isEmpty && sequence == nil && jobNumber == nil
        }
    }

    /// The counters of numbers that are never used twice.
    enum Counter: String, Sendable {
        case sequence, job
    }

    static func registerHistory(in migrator: inout DatabaseMigrator) {
        migrator.registerMigration("3: history") { database in
            try database.create(table: "endedJob") { table in
                table.primaryKey("number", .integer)
                table.column("id", .text).notNull()
                table.column("drive", .text).notNull()
                table.column("target", .text).notNull()
                table.column("result", .text).notNull()
                table.column("error", .text).notNull()
                table.column("createdAt", .integer).notNull()
                table.column("endedAt", .integer).notNull()
                table.column("bytes", .integer).notNull()
                table.column("lastSequence", .integer).notNull().unique()
                table.column("body", .blob).notNull()
            }
            try database.create(index: "endedJobOfID", on: "endedJob", columns: ["id", "number"])
            try database.create(table: "event") { table in
                table.primaryKey("sequence", .integer)
                table.column("time", .integer).notNull()
                table.column("job", .integer).notNull()
                table.column("jobID", .text).notNull()
                table.column("kind", .text).notNull()
                table.column("body", .blob).notNull()
            }
            try database.create(index: "eventOfJob", on: "event", columns: ["job", "sequence"])
            try database.create(table: "requestKey") { table in
                table.primaryKey("key", .text)
                table.column("request", .text).notNull()
                table.column("jobID", .text).notNull()
                // Numbers, separated by blanks.
                table.column("jobs", .text).notNull()
                table.column("time", .integer).notNull()
            }
        }
    }

    // MARK: Writing

    /// Keeps a batch: it outlives the process when this returns. What is there already is replaced.
    func keep(_ batch: HistoryBatch) async throws(AgentError) {
        try await writeRelaxed("keep the history in") { database in
            for event in batch.events {
                try database.execute(
                    sql: """
                        INSERT OR REPLACE INTO event (sequence, time, job, jobID, kind, body)
                        VALUES (?, ?, ?, ?, ?, ?)
                        """,
                    arguments: [
                        Int64(clamping: event.sequence), event.time, Int64(clamping: event.job.value),
                        event.jobID, event.kind, Data(event.body),
                    ])
            }
            for job in batch.jobs {
                try database.execute(
                    sql: """
                        INSERT OR REPLACE INTO endedJob (number, id, drive, target, result, error, createdAt,
                        endedAt, bytes, lastSequence, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                        """,
                    arguments: [
                        Int64(clamping: job.number.value), job.id, job.drive, job.target, job.result,
                        job.error, job.createdAt, job.endedAt, job.bytes, Int64(clamping: job.lastSequence),
                        Data(job.body),
                    ])
                try Self.forgetRunning(job.number, in: database)
            }
            for change in batch.keys { try Self.apply(change, database) }
            if let sequence = batch.sequence { try Self.raise(.sequence, to: sequence, database) }
            if let number = batch.jobNumber { try Self.raise(.job, to: number, database) }
        }
    }

    private static func apply(_ change: RequestKeys.Change, _ database: Database) throws {
        switch change {
        case .remembered(let kept):
            try database.execute(
                sql: """
                    INSERT OR REPLACE INTO requestKey (key, request, jobID, jobs, time) VALUES (?, ?, ?, ?, ?)
                    """,
                arguments: [
                    kept.key, kept.request, kept.jobID,
                    kept.jobs.map { "\($0.value)" }.joined(separator: " "), kept.time,
                ])
        case .forgotten(let key):
            try database.execute(sql: "DELETE FROM requestKey WHERE key = ?", arguments: [key])
        }
    }

    private static func raise(_ counter: Counter, to value: UInt64, _ database: Database) throws {
        try database.execute(
            sql: """
                INSERT INTO counter (name, value) VALUES (?, ?)
                ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)
                """, arguments: [counter.rawValue, Int64(clamping: value)])
    }

    /// Sets numbers of events and jobs aside before any of them is used: it is on the disk when this returns. Relaxed: no
    /// later than the next `write`.
    func reserve(sequence: UInt64, job: UInt64, isRelaxed: Bool = false) async throws(AgentError) {
        let what = "keep the numbers that were given out in"
        let body: @Sendable (Database) throws -> Void = { database in
            try Self.raise(.sequence, to: sequence, database)
            try Self.raise(.job, to: job, database)
        }
        if isRelaxed { try await writeRelaxed(what, body) } else { try await write(what, body) }
    }

    /// Forgets ended jobs beyond the newest `count`, those that ended before `time`, and their events; at most `limit` jobs
    /// and some events without a job. Jobs of request keys stay as long as their keys. Returns whether there may be more to
    /// forget.
    ///
    /// - Parameters:
    ///   - time: nanoseconds since 1970-01-01 UTC, as `keyTime`.
    ///   - keyTime: request keys from before it are forgotten.
    func forget(before time: Int64, beyond count: Int, keyTime: Int64, limit: Int) async throws(AgentError)
        -> Bool
    {
        try await writeRelaxed("forget old jobs in") { database in
            try database.execute(sql: "DELETE FROM requestKey WHERE time < ?", arguments: [keyTime])
            let keyed = try Set(
                String.fetchAll(database, sql: "SELECT jobs FROM requestKey").flatMap {
                    $0.split(separator: " ")
                }
                .compactMap { Int64($0) })
            let total = try Int.fetchOne(database, sql: "SELECT count(*) FROM endedJob") ?? 0
            let surplus = max(0, total - count)
            let oldest = try Row.fetchAll(
                database, sql: "SELECT number, endedAt FROM endedJob ORDER BY lastSequence LIMIT ?",
                arguments: [limit + keyed.count])
            var gone: [Int64] = []
            for (position, row) in oldest.enumerated() {
                let (number, endedAt): (Int64, Int64) = (row["number"], row["endedAt"])
                guard endedAt < time || position < surplus, gone.count < limit else { break }
                if !keyed.contains(number) { gone.append(number) }
            }
            for number in gone {
                try database.execute(sql: "DELETE FROM event WHERE job = ?", arguments: [number])
                try database.execute(sql: "DELETE FROM endedJob WHERE number = ?", arguments: [number])
            }
            // Events of jobs whose end nobody has seen; those that run keep theirs, however old.
            let old = try Row.fetchAll(
                database,
                sql: """
                    SELECT sequence, time FROM event WHERE job NOT IN (SELECT number FROM runningJob)
                    ORDER BY sequence LIMIT ?
                    """, arguments: [limit * 8])
            let orphans: [Int64] = old.prefix { $0["time"] < time }.map { $0["sequence"] }
            if let last = orphans.last {
                try database.execute(
                    sql: """
                        DELETE FROM event WHERE sequence <= ? AND job NOT IN (SELECT number FROM endedJob)
                        AND job NOT IN (SELECT number FROM runningJob)
                        """, arguments: [last])
            }
            return gone.count == limit
        }
    }

    // MARK: Reading

    /// The highest number of a kind that may have been given out.
    func reserved(_ counter: Counter) async throws(AgentError) -> UInt64 {
        try await read("read the numbers that were given out in") { database in
            let value = try Int64.fetchOne(
                database, sql: "SELECT value FROM counter WHERE name = ?", arguments: [counter.rawValue])
            return UInt64(max(value ?? 0, 0))
        }
    }

    /// The events after one number and up to another, of `job` where it is given, oldest first: `drivebackup.v1.JobEvent`s.
    func events(
        after sequence: UInt64, through last: UInt64, of job: JobNumber?, limit: Int
    ) async throws(AgentError) -> [[UInt8]] {
        try await read("read events in") { database in
            let range: StatementArguments = [Int64(clamping: sequence), Int64(clamping: last)]
            let condition = job == nil ? "" : "AND job = ?"
            let sql =
                "SELECT body FROM event WHERE sequence > ? AND sequence <= ? \(condition) ORDER BY sequence LIMIT ?"
            let arguments =
                range + (job.map { [Int64(clamping: $0.value)] } ?? []) + ([limit] as StatementArguments)
            return try Data.fetchAll(database, sql: sql, arguments: arguments).map { [UInt8]($0) }
        }
    }

    /// The last event of this kind that a job has had, and the number of its last one of any kind.
    func lastEvent(
        _ kind: String, of job: JobNumber
    ) async throws(AgentError) -> (body: [UInt8], sequence: UInt64)? {
        try await read("read events in") { database in
            let number = Int64(clamping: job.value)
            let body = try Data.fetchOne(
                database,
                sql: "SELECT body FROM event WHERE job = ? AND kind = ? ORDER BY sequence DESC LIMIT 1",
                arguments: [number, kind])
            let last = try Int64.fetchOne(
                database, sql: "SELECT max(sequence) FROM event WHERE job = ?", arguments: [number])
            return body.map { ([UInt8]($0), UInt64(clamping: last ?? 0)) }
        }
    }

    /// Ended jobs with higher last events than `sequence`, in the order of their ends: each job's number and
    /// `drivebackup.v1.Job`.
    func jobs(
        after sequence: UInt64, limit: Int
    ) async throws(AgentError) -> [(number: JobNumber, body: [UInt8])] {
        try await read("read ended jobs in") { database in
            try Row.fetchAll(
                database,
                sql: "SELECT number, body FROM endedJob WHERE lastSequence > ? ORDER BY lastSequence LIMIT ?",
                arguments: [Int64(clamping: sequence), limit]
            ).map(Self.job)
        }
    }

    /// The last ended job of this id.
    func job(_ id: String) async throws(AgentError) -> (number: JobNumber, body: [UInt8])? {
        try await read("read ended jobs in") { database in
            try Row.fetchOne(
                database, sql: "SELECT number, body FROM endedJob WHERE id = ? ORDER BY number DESC LIMIT 1",
                arguments: [id]
            ).map(Self.job)
        }
    }

    /// The ended job with this number.
    func job(_ number: JobNumber) async throws(AgentError) -> (number: JobNumber, body: [UInt8])? {
        try await read("read ended jobs in") { database in
            try Row.fetchOne(
                database, sql: "SELECT number, body FROM endedJob WHERE number = ?",
                arguments: [Int64(clamping: number.value)]
            ).map(Self.job)
        }
    }

    private static func job(_ row: Row) -> (number: JobNumber, body: [UInt8]) {
        let (number, body): (Int64, Data) = (row["number"], row["body"])
        return (JobNumber(value: UInt64(clamping: number)), [UInt8](body))
    }

    /// The request keys from `time` on, oldest first.
    func requestKeys(since time: Int64) async throws(AgentError) -> [RequestKeys.Kept] {
        try await read("read request keys in") { database in
            try Row.fetchAll(
                database,
                sql: "SELECT key, request, jobID, jobs, time FROM requestKey WHERE time >= ? ORDER BY time",
                arguments: [time]
            ).map { row in
                let jobs: String = row["jobs"]
                return RequestKeys.Kept(
                    key: row["key"], request: row["request"], jobID: row["jobID"],
                    jobs: jobs.split(separator: " ").compactMap { UInt64($0) }.map { JobNumber(value: $0) },
                    time: row["time"])
            }
        }
    }
}
