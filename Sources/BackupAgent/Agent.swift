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
    package var history = HistoryLimits()
    package var hooks = HookOptions()
    /// The agent's program, which is started for each target; another one in tests, which are no agent.
    package var targetProgram = TargetProcesses.ownProgram
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
    static let patience = (
        jobs: Duration.seconds(3), history: Duration.milliseconds(500), clients: Duration.milliseconds(500)
    )

    private let directories: AgentDirectories
    private let store: StateStore
    private let engines: EnginePool
    private let drives: DriveRegistry
    private let exports: ExportRegistry
    let jobs: JobManager
    private let targets: TargetProcesses
    private let log: EventLog
    private let server: RPCServer
    private let handlers: AgentHandlers
    private let writer: HistoryWriter
    private let hooks: Hooks
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
        do throws(BlockError) { starter = try engines.engine(forDrive: false) } catch {
            throw AgentError(error, of: .drive, subject: "")
        }
        let problems = AgentProblems(logger: logger)
        let opened: Result<Opened, AgentError> = await starter.blocking {
            Result { () throws(AgentError) in try Opened(configuration, problems) }
        }
        let parts = try opened.get()
        directories = parts.directories
        store = parts.store
        let claims = FileClaims()
        let admissions = Dictionary(
            parts.jobs.filter(\.goesOn).map { ($0.spec.drive, DriveAdmission(of: $0, files: parts.files)) },
            // A drive has one job at a time.
            uniquingKeysWith: { first, _ in first })
        drives = DriveRegistry(
            engines: engines, claims: claims, store: store, journalDirectory: parts.journalDirectory,
            admissions: admissions, logger: logger)
        exports = ExportRegistry(drives: drives, engines: engines, store: store, logger: logger)
        for line in parts.leftovers { logger.warning("\(line)") }
        let writer = HistoryWriter(store: parts.store, limits: configuration.history, problems: problems)
        let past = await Past(
            parts.store, numbersAreLost: parts.numbersAreLost, areUsedAtOnce: !parts.jobs.isEmpty, problems)
        log = EventLog(
            after: past.sequence, reserved: past.sequence + EventLog.reservation, history: writer,
            reserve: { writer.reserve(sequence: $0) })
        writer.begin(telling: log)
        self.writer = writer
        let hooks = Hooks(configuration.hooks, logger: logger)
        self.hooks = hooks
        targets = try TargetProcesses(
            claims: claims, store: parts.store, executable: configuration.targetProgram, kind: engines.kind,
            logger: logger)
        try await targets.begin()
        jobs = JobManager(
            drives: drives, exports: exports, targets: targets, files: parts.files,
            buffers: targets.buffers, log: log,
            history: JobHistory(
                store: parts.store, writer: writer, problems: problems, keys: past.keys, lastNumber: past.job,
                reservedNumber: past.job + JobHistory.reservation),
            store: parts.store, logger: logger, onEnd: { hooks.ended($0) })
        let identity = AgentIdentity(
            version: configuration.version, startedAt: WallClock.now(), engine: engines.kind.rawValue)
        handlers = AgentHandlers(
            drives: drives, exports: exports, jobs: jobs, log: log, problems: problems, policy: parts.policy,
            identity: identity)
        var limits = RPCLimits()
        limits.software = "drive-backup-agent \(configuration.version)"
        server = RPCServer(listen: addresses, router: handlers.router(), limits: limits, logger: logger)
        for option in configuration.drives { try await drives.openFromCommandLine(option) }
        // Who may add drives when no directories are named may add any: so what is stored passes.
        let access = parts.policy.access(isTrusted: true)
        let storedDrives = await Past.read(problems) { () async throws(AgentError) in
            try await parts.store.drives()
        }
        await drives.openStored(storedDrives ?? [], access: access)
        await jobs.takeUp(parts.jobs, admissions, on: starter)
        // Guests come back when their drives are whole and their jobs stand again, and not before.
        do throws(AgentError) {
            for option in configuration.exports { try await exports.openFromCommandLine(option) }
            let stored = await Past.read(problems) { () async throws(AgentError) in
                try await parts.store.exports()
            }
            await exports.openStored(stored ?? [], access: access)
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
        async let hooksEnded: Void = hooks.finish(within: Self.patience.history)
        let isKept = await writer.finish(within: Self.patience.history)
        await hooksEnded
        // What could not be kept is told all the same.
        if !isKept { log.showUnkept() }
        log.close()
        await server.shutDown(within: Self.patience.clients)
        await drives.closeAll()
        await targets.shutDown()
        // One that does not answer would not answer to this either.
        if isKept { store.close() }
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
        /// Which numbers were given out is not known.
        let numbersAreLost: Bool
        let files: JobFiles
        let journalDirectory: String
        /// The jobs that go on, by number.
        let jobs: [StoredJob]
        /// What an agent that was killed has left, a sentence for each job.
        let leftovers: [String]

        init(_ configuration: AgentConfiguration, _ problems: AgentProblems) throws(AgentError) {
            try configuration.hooks.check()
            policy = try PathPolicy(directories: configuration.allowedDirectories)
            let staging =
                configuration.staging ?? StagingOption(directory: configuration.stateDirectory + "/staging")
            let runtime = configuration.runtimeDirectory
            directories = try AgentDirectories(
                state: configuration.stateDirectory, runtime: runtime, staging: staging.directory, problems)
            let opened = try StateStore.openWhatThereIs(
                directory: configuration.stateDirectory, scratch: runtime)
            if let problem = opened.problem { problems.raise(.state, problem) }
            store = opened.store
            numbersAreLost = opened.numbersAreLost
            journalDirectory = runtime + "/journals"
            try JobFiles.makeDirectory(journalDirectory)
            files = JobFiles(
                recordDirectory: runtime + "/jobs", stagingDirectory: staging.directory,
                stagingLimit: staging.limit,
                manifestDirectory: configuration.stateDirectory + "/manifests")
            try JobFiles.makeDirectory(files.manifestDirectory)
            let stored = try store.runningJobs()
            jobs = stored.jobs
            let known = jobs.filter { !$0.phase.isOver }.map { (JobNumber(value: $0.number), $0.spec.jobID) }
            leftovers = stored.problems + (try files.prepare(keeping: known))
        }
    }
}

/// What earlier runs of the agent have left that this one goes on from.
private struct Past: Sendable {
    /// Event numbers up to this one are used.
    let sequence: UInt64
    /// As well.
    let job: UInt64
    let keys: [RequestKeys.Kept]

    /// Reads what there is, and sets numbers aside before the first of them is used: where no job goes on that is the start
    /// of one, which is flushed itself before it is told, and the agent's start waits for no disk.
    init(
        _ store: StateStore, numbersAreLost: Bool, areUsedAtOnce: Bool, _ problems: AgentProblems
    ) async {
        let now = WallClock.now()
        // In microseconds the time is beyond every number that was counted up to, and the same is true next time.
        let lost = UInt64(max(0, now / 1000))
        let read = await Self.read(problems) { () async throws(AgentError) in
            (try await store.reserved(.sequence), try await store.reserved(.job))
        }
        let (sequence, job) = numbersAreLost ? (lost, lost) : read ?? (lost, lost)
        self.sequence = sequence
        self.job = job
        keys =
            await Self.read(problems) { () async throws(AgentError) in
                try await store.requestKeys(since: now - RequestKeys.lifetime)
            } ?? []
        do throws(AgentError) {
            try await store.reserve(
                sequence: sequence + EventLog.reservation, job: job + JobHistory.reservation,
                isRelaxed: !areUsedAtOnce)
        } catch {
            problems.raise(
                .numbers,
                "\(error.message): the next start of the agent may use the numbers of events and jobs again")
        }
    }

    /// What `body` reads; nil, and a problem, when nothing can be read.
    static func read<Value: Sendable>(
        _ problems: AgentProblems, _ body: () async throws(AgentError) -> Value
    ) async -> Value? {
        do throws(AgentError) { return try await body() } catch {
            problems.raise(.reading, error.message)
            return nil
        }
    }
}

/// The agent's own directories, held until they are released.
private final class AgentDirectories: Sendable {
    /// nil: on a file system that cannot be written.
    let state: DirectoryLock?
    let runtime: DirectoryLock
    let staging: DirectoryLock?

    init(
        state: String, runtime: String, staging: String, _ problems: AgentProblems
    ) throws(AgentError) {
        self.runtime = try DirectoryLock(path: runtime, purpose: "runtime")
        self.state = try Self.hold(state, "state", problems)
        self.staging = try Self.hold(staging, "staging", problems)
    }

    /// Without these directories drives can be served, and jobs say what they lack.
    private static func hold(
        _ path: String, _ purpose: String, _ problems: AgentProblems
    ) throws(AgentError) -> DirectoryLock? {
        do throws(AgentError) { return try DirectoryLock(path: path, purpose: purpose) } catch {
            guard error.reason == .noSpace else { throw error }
            problems.raise(.directories, "\(error.message); the \(purpose) directory is not locked")
            return nil
        }
    }

    func release() {
        state?.release()
        runtime.release()
        staging?.release()
    }
}
