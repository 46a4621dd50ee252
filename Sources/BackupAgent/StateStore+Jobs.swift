internal import Foundation
internal import GRDB

/// The jobs that run.
extension StateStore {
    static func makeRunningJobs(in database: Database) throws {
        try database.create(table: "runningJob") { table in
            table.primaryKey("number", .integer)
            table.column("content", .text).notNull()
        }
    }

    /// The jobs that ran when an agent was last there, by number, and a sentence for each that cannot be read. Blocks.
    func runningJobs() throws(AgentError) -> (jobs: [StoredJob], problems: [String]) {
        let rows: [(UInt64, String)] = try readNow("read the running jobs in") { database in
            try Row.fetchAll(database, sql: "SELECT number, content FROM runningJob ORDER BY number").map {
                (UInt64(bitPattern: $0["number"] as Int64), $0["content"])
            }
        }
        var (jobs, problems): ([StoredJob], [String]) = ([], [])
        for (number, content) in rows {
            do { jobs.append(try JSONDecoder().decode(StoredJob.self, from: Data(content.utf8))) } catch {
                problems.append(
                    "The job \(number) does not go on: what is known of it cannot be read (\(error)); its TARGET.partial "
                        + "is still there")
            }
        }
        return (jobs, problems)
    }

    /// Keeps jobs as they are now, and forgets those that are `gone`, all at once: it is so after a power cut when this returns.
    func keep(_ jobs: [StoredJob], forgetting gone: [JobNumber] = []) async throws(AgentError) {
        try await write("keep the running jobs in") { database in
            try Self.keep(jobs, in: database)
            for number in gone { try Self.forgetRunning(number, in: database) }
        }
    }

    /// As `keep`, but for the next agent only: after a power cut it may be as it was. Forgets jobs that have never started, and
    /// those that have `ended` as soon as the history has them: a job is always in one of the two.
    func keepRelaxed(
        _ jobs: [StoredJob], forgetting gone: [JobNumber], ended: [JobNumber] = []
    ) async throws(AgentError) {
        try await writeRelaxed("keep the running jobs in") { database in
            try Self.keep(jobs, in: database)
            for number in gone { try Self.forgetRunning(number, in: database) }
            for number in ended {
                let isKept = try Bool.fetchOne(
                    database, sql: "SELECT EXISTS (SELECT 1 FROM endedJob WHERE number = ?)",
                    arguments: [Int64(bitPattern: number.value)])
                if isKept == true { try Self.forgetRunning(number, in: database) }
            }
        }
    }

    /// In the step in which the history gets it.
    static func forgetRunning(_ number: JobNumber, in database: Database) throws {
        try database.execute(
            sql: "DELETE FROM runningJob WHERE number = ?", arguments: [Int64(bitPattern: number.value)])
    }

    private static func keep(_ jobs: [StoredJob], in database: Database) throws {
        for job in jobs {
            let content = String(decoding: try JSONEncoder().encode(job), as: UTF8.self)
            try database.execute(
                sql: "INSERT OR REPLACE INTO runningJob (number, content) VALUES (?, ?)",
                arguments: [Int64(bitPattern: job.number), content])
        }
    }
}
