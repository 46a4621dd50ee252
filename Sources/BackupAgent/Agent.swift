internal import BlockIO
package import DriveBackupRPC
internal import Glibc
package import Logging
internal import ServiceLifecycle

/// What the command line says.
package struct AgentConfiguration: Sendable {
    /// The kinds of engine that do the I/O of drives.
    package enum Engine: String, CaseIterable, Sendable {
        case ring, threads

        var kind: EngineKind { self == .ring ? .ring : .threads }
    }

    package var listen: [String]
    package var stateDirectory: String
    package var runtimeDirectory: String
    package var allowedDirectories: [String] = []
    package var drives: [DriveOption] = []
    package var exports: [ExportOption] = []
    /// nil: in the state directory, bounded by what the file system has to give.
    package var staging: StagingOption?
    /// What does the I/O of drives; nil: the best kind that the system allows.
    package var engine: Engine?
    package var version: String

    package init(listen: [String], stateDirectory: String, runtimeDirectory: String, version: String) {
        self.listen = listen
        self.stateDirectory = stateDirectory
        self.runtimeDirectory = runtimeDirectory
        self.version = version
    }
}

/// The agent: all its parts, put together, from the start to the orderly end.
package final class Agent: Sendable {
    /// How long jobs may take to be suspended, or a final flush, when the agent is stopped, then clients to hear of it,
    /// then drives to close: together less than the five seconds that stopping may take.
    static let patience = (jobs: Duration.seconds(3), clients: Duration.milliseconds(700))

    private let directories: AgentDirectories
    private let store: StateStore
    private let engines: EnginePool
    private let drives: DriveRegistry
    private let exports: ExportRegistry
    private let jobs: JobManager
    private let log: EventLog
    private let server: RPCServer
    private let handlers: AgentHandlers
    private let sequences: SequenceKeeper
    private let logger: Logger

    /// Does all that can fail before the agent answers: takes its directories, opens its state and the
    /// drives, listens. Throws one sentence for the operator.
    package init(_ configuration: AgentConfiguration, logger: Logger) async throws(AgentError) {
        self.logger = logger
        let addresses = try configuration.listen.map { text throws(AgentError) in
            do throws(RPCStatus) { return try RPCAddress(parsing: text) } catch { throw AgentError(error) }
        }
        engines = EnginePool(kind: configuration.engine?.kind ?? .preferred())
        let starter: any IOEngine
        do throws(BlockError) { starter = try engines.engine() } catch {
            throw AgentError(error, of: .drive, subject: "")
        }
        let opened: Result<Opened, AgentError> = await starter.blocking {
            Result { () throws(AgentError) in try Opened(configuration) }
        }
        let parts = try opened.get()
        directories = parts.directories
        store = parts.store
        sequences = SequenceKeeper(store: parts.store, logger: logger)
        let claims = FileClaims()
        let admissions = Dictionary(
            parts.jobs.map { ($0.spec.drive, DriveAdmission(of: $0, files: parts.files)) },
            // A drive has one job at a time.
            uniquingKeysWith: { first, _ in first })
        drives = DriveRegistry(
            engines: engines, claims: claims, store: store, journalDirectory: parts.journalDirectory,
            admissions: admissions, logger: logger)
        exports = ExportRegistry(drives: drives, engines: engines, store: store, logger: logger)
        for line in parts.leftovers { logger.warning("\(line)") }
        let keeper = sequences
        log = EventLog(after: try await store.reservedSequence(), reserve: { keeper.reserve($0) })
        jobs = JobManager(
            drives: drives, exports: exports, targets: TargetSessions(claims: claims), files: parts.files,
            buffers: BufferPool(), log: log, store: store, logger: logger)
        let identity = AgentIdentity(
            version: configuration.version, startedAt: WallClock.now(), engine: engines.kind.rawValue)
        handlers = AgentHandlers(
            drives: drives, exports: exports, jobs: jobs, log: log, policy: parts.policy, identity: identity)
        var limits = RPCLimits()
        limits.software = "drive-backup-agent \(configuration.version)"
        server = RPCServer(listen: addresses, router: handlers.router(), limits: limits, logger: logger)
        for option in configuration.drives { try await drives.openFromCommandLine(option) }
        // Who may add drives when no directories are named may add any: so what is stored passes.
        let access = parts.policy.access(isTrusted: true)
        await drives.openStored(try await store.drives(), access: access)
        await jobs.takeUp(parts.jobs, admissions, on: starter)
        // Guests come back when their drives are whole and their jobs stand again, and not before.
        do throws(AgentError) {
            for option in configuration.exports { try await exports.openFromCommandLine(option) }
            await exports.openStored(try await store.exports(), access: access)
            do throws(RPCStatus) { try await server.bind() } catch { throw AgentError(error) }
        } catch {
            await exports.shutDown()
            throw error
        }
        identity.addresses.fulfil(server.addresses.map(\.description))
    }

    /// Answers until the service group shuts down or the task is cancelled, then ends in order.
    package func run() async {
        ServiceManager.ready()
        logger.notice("Listening on \(server.addresses.map(\.description).joined(separator: ", "))")
        async let serving: Void = server.run()
        // It throws when the task is cancelled, which is an end like the other.
        try? await gracefulShutdown()
        await stop()
        await serving
    }

    /// Suspends the jobs, then ends the connections, then everything else.
    package func stop() async {
        ServiceManager.stopping()
        logger.notice("Stopping")
        // Guests' requests end while the jobs do.
        async let exportsEnded: Void = exports.shutDown()
        await jobs.stop(within: Self.patience.jobs)
        await exportsEnded
        await jobs.leave()
        log.close()
        await server.shutDown(within: Self.patience.clients)
        await sequences.finish()
        await drives.closeAll()
        store.close()
        await engines.shutDown()
        directories.release()
        logger.notice("Stopped")
    }

    /// A client of this agent without a socket, as root's; for tests.
    package func connectInProcess() async throws -> RPCConnection {
        let credentials = RPCPeer.Credentials(processID: getpid(), userID: geteuid(), groupID: getegid())
        return try await server.connectInProcess(
            peer: RPCPeer(transport: .inProcess, credentials: credentials))
    }

    /// What blocks at the start.
    private struct Opened: Sendable {
        let policy: PathPolicy
        let directories: AgentDirectories
        let store: StateStore
        let files: JobFiles
        let journalDirectory: String
        /// The jobs that go on, by number.
        let jobs: [StoredJob]
        /// What an agent that was killed has left, a sentence for each job.
        let leftovers: [String]

        init(_ configuration: AgentConfiguration) throws(AgentError) {
            policy = try PathPolicy(directories: configuration.allowedDirectories)
            let staging =
                configuration.staging ?? StagingOption(directory: configuration.stateDirectory + "/staging")
            let runtime = configuration.runtimeDirectory
            directories = try AgentDirectories(
                state: configuration.stateDirectory, runtime: runtime, staging: staging.directory)
            store = try StateStore.open(directory: configuration.stateDirectory)
            journalDirectory = runtime + "/journals"
            try JobFiles.makeDirectory(journalDirectory)
            files = JobFiles(
                recordDirectory: runtime + "/jobs", stagingDirectory: staging.directory,
                stagingLimit: staging.limit)
            let stored = try store.runningJobs()
            jobs = stored.jobs
            let known = jobs.filter { !$0.phase.isOver }.map { (JobNumber(value: $0.number), $0.spec.jobID) }
            leftovers = stored.problems + (try files.prepare(keeping: known))
        }
    }
}

/// The agent's own directories, held until they are released.
private final class AgentDirectories: Sendable {
    let state: DirectoryLock
    let runtime: DirectoryLock
    let staging: DirectoryLock

    init(state: String, runtime: String, staging: String) throws(AgentError) {
        self.state = try DirectoryLock(path: state, purpose: "state")
        self.runtime = try DirectoryLock(path: runtime, purpose: "runtime")
        self.staging = try DirectoryLock(path: staging, purpose: "staging")
    }

    func release() {
        state.release()
        runtime.release()
        staging.release()
    }
}
