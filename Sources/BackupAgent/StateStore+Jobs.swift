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

    /// Keeps jobs as they are now and forgets others, all at once: it is so after a power cut when this returns.
    func keep(_ jobs: [StoredJob], forgetting ended: [JobNumber] = []) async throws(AgentError) {
        try await write("keep the running jobs in") { try Self.keep(jobs, forgetting: ended, in: $0) }
    }

    /// As `keep`, but for the next agent only: after a power cut it may be as it was.
    func keepRelaxed(_ jobs: [StoredJob], forgetting ended: [JobNumber]) async throws(AgentError) {
        try await writeRelaxed("keep the running jobs in") { try Self.keep(jobs, forgetting: ended, in: $0) }
    }

    private static func keep(
        _ jobs: [StoredJob], forgetting ended: [JobNumber], in database: Database
    ) throws {
        for job in jobs {
            let content = String(decoding: try JSONEncoder().encode(job), as: UTF8.self)
            try database.execute(
                sql: "INSERT OR REPLACE INTO runningJob (number, content) VALUES (?, ?)",
                arguments: [Int64(bitPattern: job.number), content])
        }
        for number in ended {
            try database.execute(
                sql: "DELETE FROM runningJob WHERE number = ?",
                arguments: [Int64(bitPattern: number.value)])
        }
    }
}
