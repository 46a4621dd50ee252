package import DiskImages
internal import GRDB

/// What the agent remembers over restarts, in an SQLite database in its state directory.
///
/// GRDB works on a thread of its own; callers await it and never block Swift's pool. `open` does block.
package final class StateStore: Sendable {
    /// A drive that a client has added.
    package struct StoredDrive: Sendable, Hashable {
        package var id: String
        package var file: String
        package var format: ImageFormat
        package var isReadOnly: Bool
    }

    /// The name of the database in the state directory.
    static let fileName = "state.sqlite"

    private let database: DatabaseQueue
    private let path: String

    /// Opens or makes the database. Blocks; throws a sentence for the operator.
    package static func open(directory: String) throws(AgentError) -> StateStore {
        let path = directory + "/" + fileName
        do {
            var configuration = Configuration()
            configuration.journalMode = .wal
            configuration.prepareDatabase { database in
                // What was answered must be there after a power cut.
                try database.execute(sql: "PRAGMA synchronous = FULL")
            }
            let database = try DatabaseQueue(path: path, configuration: configuration)
            try migrations.migrate(database)
            let newer = try database.read { try migrations.hasBeenSuperseded($0) }
            guard !newer else {
                throw AgentError(
                    .ioError,
                    "Couldn't use \(path): it was written by a newer version of the agent", subject: path)
            }
            return StateStore(database, path: path)
        } catch let error as AgentError {
            throw error
        } catch {
            throw failure("open the agent's state in \(path)", error, path: path)
        }
    }

    private init(_ database: DatabaseQueue, path: String) {
        self.database = database
        self.path = path
    }

    private static var migrations: DatabaseMigrator {
        var migrator = DatabaseMigrator()
        migrator.registerMigration("1: drives and event numbers") { database in
            try database.create(table: "drive") { table in
                table.primaryKey("id", .text)
                table.column("file", .text).notNull()
                table.column("format", .text).notNull()
                table.column("readOnly", .boolean).notNull()
            }
            try database.create(table: "counter") { table in
                table.primaryKey("name", .text)
                table.column("value", .integer).notNull()
            }
        }
        return migrator
    }

    /// All stored drives, by id.
    package func drives() async throws(AgentError) -> [StoredDrive] {
        try await read("read the drives in") { database in
            try Row.fetchAll(database, sql: "SELECT id, file, format, readOnly FROM drive ORDER BY id").map {
                row in
                // A word that this version does not know cannot be there: hasBeenSuperseded was checked.
                StoredDrive(
                    id: row["id"], file: row["file"], format: ImageFormat(rawValue: row["format"]) ?? .raw,
                    isReadOnly: row["readOnly"])
            }
        }
    }

    /// Keeps a drive; it is there after a power cut when this returns.
    package func add(_ drive: StoredDrive) async throws(AgentError) {
        try await write("keep the drive \(drive.id) in") { database in
            try database.execute(
                sql: "INSERT OR REPLACE INTO drive (id, file, format, readOnly) VALUES (?, ?, ?, ?)",
                arguments: [drive.id, drive.file, drive.format.rawValue, drive.isReadOnly])
        }
    }

    /// Forgets a drive; no error where there is none.
    package func remove(drive id: String) async throws(AgentError) {
        try await write("forget the drive \(id) in") { database in
            try database.execute(sql: "DELETE FROM drive WHERE id = ?", arguments: [id])
        }
    }

    /// The highest event number that may have been given out.
    package func reservedSequence() async throws(AgentError) -> UInt64 {
        try await read("read the event numbers in") { database in
            let value = try Int64.fetchOne(
                database, sql: "SELECT value FROM counter WHERE name = 'sequence'")
            return UInt64(max(value ?? 0, 0))
        }
    }

    /// Records that event numbers up to `sequence` may be given out.
    package func reserve(sequence: UInt64) async throws(AgentError) {
        try await write("keep the event numbers in") { database in
            try database.execute(
                sql: """
                    INSERT INTO counter (name, value) VALUES ('sequence', ?)
                    ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)
                    """, arguments: [Int64(clamping: sequence)])
        }
    }

    /// Closes the database; nothing is asked of it afterwards.
    package func close() {
        // A failure to close leaves nothing to do: every transaction is durable already.
        try? database.close()
    }

    private func read<Value: Sendable>(
        _ what: String, _ body: @escaping @Sendable (Database) throws -> Value
    ) async throws(AgentError) -> Value {
        do { return try await database.read(body) } catch {
            throw Self.failure("\(what) \(path)", error, path: path)
        }
    }

    private func write(
        _ what: String, _ body: @escaping @Sendable (Database) throws -> Void
    ) async throws(AgentError) {
        do { try await database.write(body) } catch {
            throw Self.failure("\(what) \(path)", error, path: path)
        }
    }

    private static func failure(_ what: String, _ error: any Error, path: String) -> AgentError {
        guard let error = error as? DatabaseError else {
            return AgentError(.ioError, "Couldn't \(what): \(error)", subject: path)
        }
        let why =
            switch error.resultCode {
            case .SQLITE_NOTADB, .SQLITE_CORRUPT:
                "it is damaged or no database (move it away to start with an empty one)"
            case .SQLITE_FULL: "no space is left"
            case .SQLITE_CANTOPEN: "the file cannot be opened or made"
            case .SQLITE_READONLY: "it cannot be written"
            default: error.message ?? "error \(error.resultCode.rawValue)"
            }
        return AgentError(
            error.resultCode == .SQLITE_FULL ? .noSpace : .ioError, "Couldn't \(what): \(why)", subject: path)
    }
}
