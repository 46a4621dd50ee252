internal import DriveBackupRPC
internal import DriveBackupWire
internal import Glibc

/// What the agent's methods do: they map the wire to the domain and back, and decide nothing.
struct AgentHandlers: Sendable {
    let drives: DriveRegistry
    let exports: ExportRegistry
    let jobs: JobManager
    let log: EventLog
    let problems: AgentProblems
    let policy: PathPolicy
    /// What does not change about the agent.
    let identity: AgentIdentity

    /// All methods with their handlers.
    func router() -> RPCRouter {
        var router = RPCRouter()
        addAgent(to: &router)
        addDrives(to: &router)
        addExports(to: &router)
        addJobs(to: &router)
        return router
    }

    /// Which files the caller may name.
    func access(_ context: RPCContext) -> PathAccess {
        let isLocal = context.peer.transport == .unix || context.peer.transport == .inProcess
        let user = context.peer.credentials?.userID
        return policy.access(isTrusted: isLocal && (user == 0 || user == geteuid()))
    }

    private func addAgent(to router: inout RPCRouter) {
        router.unary(AgentMethods.getInfo) { (_, _) async throws(RPCStatus) in await info() }
        router.stream(AgentMethods.watchEvents) { (request, _, writer) async throws(RPCStatus) in
            try await watch(after: request.afterSequence, follows: !request.noFollow, writer)
        }
    }

    private func info() async -> AgentInfo {
        var info = AgentInfo()
        info.version = identity.version
        info.protocolVersion = 1
        info.pid = Int64(getpid())
        info.startedAt = identity.startedAt
        info.drives = UInt32(clamping: await drives.list().filter { $0.problem == nil }.count)
        info.jobs = UInt32(clamping: await jobs.list(all: false).filter { $0.state != .concluded }.count)
        info.engine = identity.engine
        info.lastSequence = log.lastSequence
        info.addresses = identity.addresses.value ?? []
        info.allowedDirectories = policy.directories
        info.problems = problems.sentences
        return info
    }

    /// All jobs' events. A slow reader costs a number: what it has not read stays in the log, or is merged
    /// there.
    private func watch(
        after sequence: UInt64, follows: Bool, _ writer: RPCWriter<DriveBackupWire.JobEvent>
    ) async throws(RPCStatus) {
        var last = sequence
        while true {
            let isClosed = log.isClosed
            let horizon = log.lastSequence
            let events = await jobs.watchAll(after: last)
            try await writer.write(contentsOf: events)
            last = events.last?.sequence ?? last
            guard events.isEmpty else { continue }
            if !follows { return }
            if isClosed { throw AgentError(.agentStopping, "The agent is stopping").status }
            try checkNotCancelled()
            // There was nothing up to the horizon.
            last = max(last, horizon)
            await log.waitForEvent(after: last)
        }
    }

    /// Throws when the call has ended; the status goes to nobody.
    func checkNotCancelled() throws(RPCStatus) {
        if Task.isCancelled { throw RPCStatus(.cancelled, "The call was cancelled") }
    }

    /// Runs what throws the agent's errors in a handler, which throws statuses.
    func translate<Value>(
        _ body: () async throws(AgentError) -> Value
    ) async throws(RPCStatus) -> Value {
        do throws(AgentError) { return try await body() } catch { throw error.status }
    }
}

/// What does not change about the agent while it runs.
struct AgentIdentity: Sendable {
    let version: String
    /// Nanoseconds since 1970-01-01 UTC.
    let startedAt: Int64
    let engine: String
    /// Where it listens, once it does.
    let addresses = OneShot<[String]>()
}
