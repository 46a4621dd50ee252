internal import BlockIO
internal import GRDB

// Files of targets that are still to be removed.

extension StateStore {
    static func registerLeftovers(in migrator: inout DatabaseMigrator) {
        migrator.registerMigration("5: targets to remove") { database in
            try database.create(table: "leftover") { table in
                table.column("job", .text).notNull()
                table.column("path", .text).notNull()
                // The bits of unsigned numbers; NULL where it is not known whether the file was made.
                table.column("device", .integer)
                table.column("inode", .integer)
                // Nanoseconds since 1970; 0 where it is not known.
                table.column("birthTime", .integer).notNull()
                table.column("overwrites", .boolean).notNull()
                table.uniqueKey(["path", "device", "inode"])
            }
        }
    }

    /// All files that are to be removed.
    func leftovers() async throws(AgentError) -> [TargetLeftover] {
        try await read("read the targets to remove in") { database in
            let sql = "SELECT job, path, device, inode, birthTime, overwrites FROM leftover ORDER BY path"
            return try Row.fetchAll(database, sql: sql).map { row in
                let (device, inode): (Int64?, Int64?) = (row["device"], row["inode"])
                var identity: FileIdentity?
                if let device, let inode {
                    identity = FileIdentity(
                        fileOn: UInt64(bitPattern: device), inode: UInt64(bitPattern: inode))
                }
                return TargetLeftover(
                    jobID: row["job"], path: row["path"], identity: identity,
                    birthTime: UInt64(bitPattern: row["birthTime"]), overwrites: row["overwrites"])
            }
        }
    }

    /// Keeps a file that is to be removed. The job's end waits for it, so it is not flushed: what a power cut leaves of a
    /// target is nobody's.
    func add(_ file: TargetLeftover) async throws(AgentError) {
        try await writeRelaxed("keep the target to remove in") { database in
            try database.execute(
                sql: """
                    INSERT OR REPLACE INTO leftover (job, path, device, inode, birthTime, overwrites)
                    VALUES (?, ?, ?, ?, ?, ?)
                    """,
                arguments: [
                    file.jobID, file.path, file.device, file.inode, Int64(bitPattern: file.birthTime),
                    file.overwrites,
                ])
        }
    }

    /// Forgets a file that was removed; no error where there is none.
    func remove(_ file: TargetLeftover) async throws(AgentError) {
        try await write("forget the removed target in") { database in
            try database.execute(
                sql: "DELETE FROM leftover WHERE path = ? AND device IS ? AND inode IS ?",
                arguments: [file.path, file.device, file.inode])
        }
    }
}

extension TargetLeftover {
    fileprivate var device: Int64? { identity.map { Int64(bitPattern: $0.device) } }
    fileprivate var inode: Int64? { identity.map { Int64(bitPattern: $0.inode) } }
}
