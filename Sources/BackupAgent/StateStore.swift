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
        package var cache: CacheMode
        /// The format is raw and was found out when the drive was added, not stated.
        package var isProbedRaw: Bool
    }

    /// An export of a drive that a client has added.
    package struct StoredExport: Sendable, Hashable {
        package var name: String
        package var drive: String
        package var address: String
        package var isReadOnly: Bool
    }

    /// The name of the database in the state directory.
    static let fileName = "state.sqlite"

    private let database: DatabaseQueue
    let path: String
    /// Why nothing is written; nil: everything is.
    let refusal: AgentError?

    /// Opens or makes the database. Blocks; throws a sentence for the operator.
    package static func open(directory: String) throws(AgentError) -> StateStore {
        try open(path: directory + "/" + fileName)
    }

    /// - Parameter refusal: what every write is refused with, and no file is written.
    static func open(path: String, refusal: AgentError? = nil) throws(AgentError) -> StateStore {
        do {
            var configuration = Configuration()
            configuration.journalMode = path == ":memory:" ? .default : .wal
            var looking = Configuration()
            looking.readonly = true
            // Before the first write: what is damaged stays as it is. Where nothing can be opened yet, the next line says why.
            if let database = try? DatabaseQueue(path: path, configuration: looking) { try check(database) }
            let database = try DatabaseQueue(path: path, configuration: configuration)
            try migrations.migrate(database)
            // What was answered must be there after a power cut. (Opening it for the write-ahead log has set less.)
            try database.writeWithoutTransaction { try $0.execute(sql: "PRAGMA synchronous = FULL") }
            let newer = try database.read { try migrations.hasBeenSuperseded($0) }
            guard !newer else {
                throw AgentError(
                    .stateSuperseded,
                    "Couldn't use \(path): it was written by a newer version of the agent", subject: path)
            }
            return StateStore(database, path: path, refusal: refusal)
        } catch let error as AgentError {
            throw error
        } catch {
            throw failure("open the agent's state in \(path)", error, path: path)
        }
    }

    private static func check(_ database: DatabaseQueue) throws {
        let damage: String?
        do {
            damage = try database.read { try String.fetchOne($0, sql: "PRAGMA quick_check(1)") }
        } catch let error as DatabaseError
            where ![.SQLITE_CORRUPT, .SQLITE_NOTADB].contains(error.resultCode.primaryResultCode)
        {
            // It cannot be read by one that may not write; who may sees why.
            return
        }
        guard damage == nil || damage == "ok" else {
            throw DatabaseError(resultCode: .SQLITE_CORRUPT, message: damage)
        }
    }

    private init(_ database: DatabaseQueue, path: String, refusal: AgentError?) {
        self.database = database
        self.path = path
        self.refusal = refusal
    }

    private static var migrations: DatabaseMigrator {
        var migrator = DatabaseMigrator()
        registerDrives(in: &migrator)
        registerHistory(in: &migrator)
        migrator.registerMigration("4: running jobs", migrate: makeRunningJobs)
        registerLeftovers(in: &migrator)
        registerCacheModes(in: &migrator)
        return migrator
    }

    private static func registerDrives(in migrator: inout DatabaseMigrator) {
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
        migrator.registerMigration("2: exports, and raw drives that were probed") { database in
            try database.alter(table: "drive") { table in
                table.add(column: "probedRaw", .boolean).notNull().defaults(to: false)
            }
            // It is not known any more; taken for probed, a raw drive is safe.
            try database.execute(sql: "UPDATE drive SET probedRaw = (format = 'raw')")
            try database.create(table: "export") { table in
                // They come back in the order in which they were added: the first of an address has a right of its own.
                table.autoIncrementedPrimaryKey("position")
                table.column("name", .text).notNull().unique()
                table.column("drive", .text).notNull()
                table.column("address", .text).notNull()
                table.column("readOnly", .boolean).notNull()
            }
        }
    }

    private static func registerCacheModes(in migrator: inout DatabaseMigrator) {
        migrator.registerMigration("6: cache modes of drives") { database in
            try database.alter(table: "drive") { table in
                table.add(column: "cache", .text).notNull().defaults(to: "writeback")
            }
        }
    }

    /// All stored drives, by id.
    package func drives() async throws(AgentError) -> [StoredDrive] {
        try await read("read the drives in") { database in
            let sql = "SELECT id, file, format, readOnly, cache, probedRaw FROM drive ORDER BY id"
            return try Row.fetchAll(database, sql: sql).map { row in
                // A word that this version does not know cannot be there: hasBeenSuperseded was checked.
                StoredDrive(
                    id: row["id"], file: row["file"], format: ImageFormat(rawValue: row["format"]) ?? .raw,
                    isReadOnly: row["readOnly"], cache: CacheMode(rawValue: row["cache"]) ?? .writeback,
                    isProbedRaw: row["probedRaw"])
            }
        }
    }

    /// Keeps a drive; it is there after a power cut when this returns.
    package func add(_ drive: StoredDrive) async throws(AgentError) {
        try await write("keep the drive \(drive.id) in") { database in
            try database.execute(
                sql: """
                    INSERT OR REPLACE INTO drive (id, file, format, readOnly, cache, probedRaw)
                    VALUES (?, ?, ?, ?, ?, ?)
                    """,
                arguments: [
                    drive.id, drive.file, drive.format.rawValue, drive.isReadOnly, drive.cache.rawValue,
                    drive.isProbedRaw,
                ])
        }
    }

    /// Forgets a drive; no error where there is none.
    package func remove(drive id: String) async throws(AgentError) {
        try await write("forget the drive \(id) in") { database in
            try database.execute(sql: "DELETE FROM drive WHERE id = ?", arguments: [id])
        }
    }

    /// All stored exports, oldest first.
    package func exports() async throws(AgentError) -> [StoredExport] {
        try await read("read the exports in") { database in
            let sql = "SELECT name, drive, address, readOnly FROM export ORDER BY position"
            return try Row.fetchAll(database, sql: sql).map { row in
                StoredExport(
                    name: row["name"], drive: row["drive"], address: row["address"],
                    isReadOnly: row["readOnly"])
            }
        }
    }

    /// Keeps an export; it is there after a power cut when this returns.
    package func add(_ export: StoredExport) async throws(AgentError) {
        try await write("keep the export \(export.name) in") { database in
            try database.execute(
                sql: "INSERT OR REPLACE INTO export (name, drive, address, readOnly) VALUES (?, ?, ?, ?)",
                arguments: [export.name, export.drive, export.address, export.isReadOnly])
        }
    }

    /// Forgets an export; no error where there is none.
    package func remove(export name: String) async throws(AgentError) {
        try await write("forget the export \(name) in") { database in
            try database.execute(sql: "DELETE FROM export WHERE name = ?", arguments: [name])
        }
    }

    /// Closes the database; nothing is asked of it afterwards.
    package func close() {
        // A failure to close leaves nothing to do: every transaction is durable already.
        try? database.close()
    }

    /// As `read`; blocks.
    func readNow<Value>(_ what: String, _ body: (Database) throws -> Value) throws(AgentError) -> Value {
        do { return try database.read(body) } catch {
            throw Self.failure("\(what) \(path)", error, path: path)
        }
    }

    func read<Value: Sendable>(
        _ what: String, _ body: @escaping @Sendable (Database) throws -> Value
    ) async throws(AgentError) -> Value {
        do { return try await database.read(body) } catch {
            throw Self.failure("\(what) \(path)", error, path: path)
        }
    }

    func write(
        _ what: String, _ body: @escaping @Sendable (Database) throws -> Void
    ) async throws(AgentError) {
        if let refusal { throw refusal }
        do { try await database.write(body) } catch {
            throw Self.failure("\(what) \(path)", error, path: path)
        }
    }

    /// As `write`, but for the system's page cache only: what is written outlives the process, and reaches the disk with
    /// the next `write` or checkpoint. After a power cut it may be missing, and is never half there.
    func writeRelaxed<Value: Sendable>(
        _ what: String, _ body: @escaping @Sendable (Database) throws -> Value
    ) async throws(AgentError) -> Value {
        if let refusal { throw refusal }
        do {
            return try await database.writeWithoutTransaction { database in
                // It has no effect inside a transaction.
                try database.execute(sql: "PRAGMA synchronous = NORMAL")
                let result = Result {
                    var value: Value?
                    try database.inTransaction(.immediate) {
                        value = try body(database)
                        return .commit
                    }
                    return value
                }
                try database.execute(sql: "PRAGMA synchronous = FULL")
                guard let value = try result.get() else {
                    throw DatabaseError(resultCode: .SQLITE_ABORT, message: "nothing was written")
                }
                return value
            }
        } catch {
            throw Self.failure("\(what) \(path)", error, path: path)
        }
    }

    /// Whether what `write` has written is on the disk when it returns, as SQLite sees it. Blocks.
    func flushesWrites() throws(AgentError) -> Bool {
        try readNow("ask about flushes of") { try Int.fetchOne($0, sql: "PRAGMA synchronous") == 2 }
    }

    private static func failure(_ what: String, _ error: any Error, path: String) -> AgentError {
        guard let error = error as? DatabaseError else {
            return AgentError(.ioError, "Couldn't \(what): \(error)", subject: path)
        }
        let why =
            switch error.resultCode.primaryResultCode {
            case .SQLITE_NOTADB, .SQLITE_CORRUPT:
                "it is damaged or no database"
            case .SQLITE_FULL: "no space is left"
            case .SQLITE_CANTOPEN: "the file cannot be opened or made"
            case .SQLITE_READONLY: "it cannot be written"
            default: error.message ?? "error \(error.resultCode.rawValue)"
            }
        let reason: AgentError.Reason =
            switch error.resultCode.primaryResultCode {
            case .SQLITE_FULL: .noSpace
            case .SQLITE_NOTADB, .SQLITE_CORRUPT: .stateDamaged
            default: .ioError
            }
        return AgentError(reason, "Couldn't \(what): \(why)", subject: path)
    }
}
