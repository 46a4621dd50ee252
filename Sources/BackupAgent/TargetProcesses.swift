package import BlockIO
internal import DiskImages
package import Logging
internal import Synchronization

/// Opens each target in a process of its own, so that the agent can leave it whatever it hangs in: the agent's own program,
/// started again (`TargetServer`), which inherits no drive, socket or lock and takes data from shared memory.
package final class TargetProcesses: TargetOpener {
    /// A process whose job has ended, or is about to, and that still uses the target.
    private struct Leaving {
        var paths: Set<String>
        var jobID: String
        var processID: Int32
        /// It was killed. Else it gives the target up; `isOver` tells when it has, or was killed.
        var isAbandoned = false
        let isOver = OneShot<Void>()

        var sentence: String {
            isAbandoned
                ? "it is still used by an abandoned process of the job \(jobID) (\(processID)), whose writes have not ended"
                : "it is being given up by the process of the job \(jobID) (\(processID))"
        }
    }

    private struct State {
        var lastNumber: UInt64 = 0
        var connections: [UInt64: TargetConnection] = [:]
        var leaving: [JobNumber: Leaving] = [:]
        var isShutDown = false
        /// Processes that are being started.
        var starting = 0
        /// Fulfilled after `isShutDown` when none is being started any more.
        let noneStarting = OneShot<Void>()
    }

    /// The program that is running, even when its file was replaced since it was started.
    package static let ownProgram = "/proc/self/exe"
    /// How long a job's end waits for a killed process and for the removal of what it leaves.
    private static let limits = (ending: Duration.milliseconds(250), removing: Duration.seconds(1))
    /// How long a target that is given up may take before its process is killed.
    let patience: Duration
    /// How long a start waits for that, and for the removal of what an earlier job has left.
    private var startPatience: Duration { max(patience, .seconds(10)) }

    /// What the buffers of all jobs lie in.
    let memory: SharedMemory
    /// The buffers of all jobs.
    package let buffers: BufferPool

    private let claims: FileClaims
    private let executable: String
    private let engine: any IOEngine
    /// Of the engines of the processes, too.
    private let kind: EngineKind
    private let leftovers: TargetLeftovers
    private let logger: Logger
    private let state = Mutex(State())

    /// - Parameters:
    ///   - executable: the agent's program; another one in tests, which are no agent.
    ///   - store: remembers what is still to be removed; nil in tests that need no memory.
    ///   - patience: how long a target that is given up may take before its process is killed.
    package init(
        claims: FileClaims, store: StateStore?, executable: String = TargetProcesses.ownProgram,
        kind: EngineKind = .threads, patience: Duration = .milliseconds(400), logger: Logger
    ) throws(AgentError) {
        self.patience = patience
        do throws(BlockError) {
            memory = try SharedMemory(count: BufferPool.capacity)
            engine = try kind.makeEngine(name: "targets")
        } catch {
            throw AgentError(error, of: .target, subject: "")
        }
        buffers = BufferPool(in: memory)
        self.claims = claims
        self.kind = kind
        self.executable = executable
        self.logger = logger
        leftovers = TargetLeftovers(store: store, logger: logger)
    }

    /// Removes, in the background, what earlier agents have left to be removed.
    package func begin() async throws(AgentError) {
        try await leftovers.begin { [weak self] file in
            guard let self else { return Self.stopped }
            return await self.remove(file)
        }
    }

    private static var stopped: BlockError { BlockError(.cancelled, "The agent is stopping") }

    /// Kills all that is left, and waits for none that hangs. Nothing is opened afterwards.
    package func shutDown() async {
        let noneStarting: OneShot<Void>? = state.withLock { state in
            state.isShutDown = true
            return state.starting > 0 ? state.noneStarting : nil
        }
        _ = await noneStarting?.wait()
        // What is given up gets its time, as it would have had during its job.
        await withTaskGroup(of: Void.self) { group in
            for leaving in state.withLock({ Array($0.leaving.values) }) where !leaving.isAbandoned {
                group.addTask { [patience] in _ = await leaving.isOver.wait(atMost: patience) }
            }
        }
        let connections = state.withLock { $0.connections.values }
        for connection in connections { connection.abandon() }
        await leftovers.end()
        await withTaskGroup(of: Void.self) { group in
            for connection in connections {
                group.addTask { _ = await connection.gone.wait(atMost: Self.limits.ending) }
            }
        }
        for connection in connections where connection.gone.value == nil { connection.forget() }
        await engine.shutDown()
    }

    // MARK: Opening

    package func check(_ spec: TargetSpec) async throws(AgentError) {
        guard case .new = spec.mode else { return }
        try await makeWay(for: spec)
        let (_, connection) = try await ask(.check(spec), spec)
        connection.end()
    }

    package func open(_ spec: TargetSpec) async throws(AgentError) -> any JobTarget {
        try await makeWay(for: spec)
        let (reply, connection) = try await ask(.open(spec), spec)
        guard case .opened(let opened) = reply else {
            connection.abandon()
            throw AgentError(
                .ioError, "Couldn't open \(spec.path): its process gave a wrong answer", subject: spec.path)
        }
        return TargetProcess(opened, connection, self, path: spec.path)
    }

    package func reserve(_ spec: TargetSpec) { claims.reserve(spec) }

    package func release(_ spec: TargetSpec) { claims.release(.target(spec.job, jobID: spec.jobID)) }

    package func removeLater(_ file: TargetLeftover) async {
        await leftovers.record(file)
        await leftovers.add(file, aliases: []) {}
    }

    package func reopen(_ spec: TargetSpec) async throws(AgentError) -> ReopenedTarget {
        let (reply, connection) = try await ask(.reopen(spec), spec)
        switch reply {
        case .opened(let opened): return .open(TargetProcess(opened, connection, self, path: spec.path))
        case .published:
            connection.end()
            return .published
        default:
            connection.abandon()
            throw AgentError(
                .ioError, "Couldn't open \(spec.path): its process gave a wrong answer", subject: spec.path)
        }
    }

    /// Waits for what an earlier job gives up, refuses a target that an abandoned process has, and removes what is still to
    /// be removed there.
    private func makeWay(for spec: TargetSpec) async throws(AgentError) {
        while let leaving = leaving(spec.path) {
            guard !leaving.isAbandoned, await leaving.isOver.wait(atMost: startPatience) != nil
            else {
                throw AgentError(
                    .targetBusy, "Couldn't use \(spec.path) as target: \(leaving.sentence)",
                    subject: spec.path)
            }
        }
        guard let failure = await leftovers.settle(spec.path, within: startPatience) else { return }
        throw AgentError(
            .targetBusy,
            "Couldn't use \(spec.path) as target: what an earlier job has left there cannot be removed yet "
                + "(\(failure.message))", subject: spec.path)
    }

    private func leaving(_ path: String) -> Leaving? {
        state.withLock { $0.leaving.values.first { $0.paths.contains(path) } }
    }

    /// Starts a process and asks it one thing that it may refuse; when the task is cancelled meanwhile it is left behind.
    private func ask(
        _ request: TargetRequest, _ spec: TargetSpec
    ) async throws(AgentError) -> (TargetReply, TargetConnection) {
        let connection: TargetConnection
        do throws(BlockError) { connection = try await start(spec.job, spec.jobID) } catch {
            throw AgentError(
                .ioError, "Couldn't start a process for the target \(spec.path): \(error.message)",
                subject: spec.path)
        }
        let outcome = await withTaskCancellationHandler {
            await connection.ask(request, late: {})
        } onCancel: {
            connection.abandon()
        }
        // The agent stops: what was reopened is the next one's, and nothing that was made on the way can be removed now.
        if state.withLock({ $0.isShutDown }), case .reopen = request {
            guard case .reply = outcome else {
                throw AgentError(
                    .agentStopping, "Gave up opening \(spec.path): the agent is stopping", subject: spec.jobID
                )
            }
        }
        switch outcome {
        case .reply(.refused(let error)):
            connection.end()
            throw error
        case .reply(let reply): return (reply, connection)
        case .gone(let ending):
            await leaveBehind(connection, paths: [spec.path], keep: false)
            throw AgentError(
                .ioError, "Couldn't open \(spec.path): the process for it \(ending)", subject: spec.path)
        case .abandoned:
            await leaveBehind(connection, paths: [spec.path], keep: false)
            throw AgentError(
                .jobCancelled, "Gave up opening \(spec.path): the job was cancelled", subject: spec.jobID)
        }
    }

    private func start(_ job: JobNumber, _ jobID: String) async throws(BlockError) -> TargetConnection {
        let isShutDown = state.withLock { state in
            if !state.isShutDown { state.starting += 1 }
            return state.isShutDown
        }
        guard !isShutDown else { throw Self.stopped }
        defer { hasStarted() }
        let arguments = [TargetServer.processName(jobID: jobID), TargetServer.flag, kind.rawValue]
        let (executable, memory) = (executable, memory)
        let started: Result<ChildProcess, BlockError> = await engine.blocking {
            Result { () throws(BlockError) in
                try ChildProcess(executable: executable, arguments: arguments, memory: memory)
            }
        }
        let connection = TargetConnection(
            try started.get(), job: job, jobID: jobID, claims: claims, engine: engine)
        let number = state.withLock { state in
            state.lastNumber += 1
            state.connections[state.lastNumber] = connection
            return state.lastNumber
        }
        let receiving = connection.listen()
        // It ends with the process, which `shutDown` kills.
        Task {
            await connection.run(receiving)
            state.withLock { $0.connections[number] = nil }
        }
        return connection
    }

    private func hasStarted() {
        let noneStarting: OneShot<Void>? = state.withLock { state in
            state.starting -= 1
            return state.isShutDown && state.starting == 0 ? state.noneStarting : nil
        }
        noneStarting?.fulfil(())
    }

    // MARK: Leaving behind

    /// Takes over a process that was told to give its target up, whose `answer` is still to come; when that takes too long it
    /// is left behind. Returns when all is kept that the next agent has to know, should this one be killed before.
    func letGiveUp(
        _ connection: TargetConnection, paths: Set<String>, answer: OneShot<TargetConnection.Outcome>
    ) async {
        let leaving = Leaving(
            paths: paths, jobID: connection.jobID, processID: connection.process.processID)
        state.withLock { $0.leaving[connection.job] = leaving }
        let file = connection.made
        if let file { await leftovers.record(file) }
        // It ends when the process has answered or is gone, or after a moment.
        Task {
            if case .reply(.givenUp) = await answer.wait(atMost: patience) {
                connection.end()
                if let file { await leftovers.forget(file) }
                state.withLock { $0.leaving[connection.job] = nil }
            } else {
                connection.abandon()
                await leaveBehind(connection, paths: paths, keep: false)
            }
            leaving.isOver.fulfil(())
        }
    }

    /// Takes over what was killed, or has died: its target stays claimed until it is gone, and then the file that it made is
    /// removed unless `keep`. Returns when that is done, or after a moment.
    func leaveBehind(_ connection: TargetConnection, paths: Set<String>, keep: Bool) async {
        let (holder, processID) = (connection.holder, connection.process.processID)
        claims.abandon(holder, process: processID)
        state.withLock { state in
            state.leaving[connection.job] = Leaving(
                paths: paths, jobID: connection.jobID, processID: processID, isAbandoned: true)
        }
        let file = keep ? nil : connection.made
        if let file { await leftovers.record(file) }
        let done = OneShot<Void>()
        // It ends when the process does; the agent's end does not wait for that.
        Task {
            _ = await connection.gone.wait()
            // It may have said last what it had made.
            let made = keep ? nil : connection.made
            if let made, made != file {
                await leftovers.record(made)
                if let file { await leftovers.forget(file) }
            }
            if let file = made {
                // From here on a new job of this target waits for the removal.
                await leftovers.add(file, aliases: paths) { [claims] in claims.release(holder) }
            } else {
                claims.release(holder)
            }
            state.withLock { $0.leaving[connection.job] = nil }
            if let made { _ = await leftovers.settle(made.path, within: startPatience) }
            done.fulfil(())
        }
        if await connection.gone.wait(atMost: Self.limits.ending) != nil {
            // What is left is to be removed, which takes time only where that hangs, too.
            _ = await done.wait(atMost: Self.limits.removing)
            return
        }
        logger.warning(
            """
            The process \(processID) of the job \(connection.jobID) was abandoned: what it asked of its target has not \
            ended; until it has \(paths.sorted().joined(separator: ", ")) cannot be a target
            """)
    }

    package func busy(_ job: JobNumber) -> String? {
        state.withLock { $0.leaving[job]?.sentence }
    }

    /// Removes a file in a process of its own; what went wrong, or nil.
    private func remove(_ file: TargetLeftover) async -> BlockError? {
        do throws(BlockError) {
            let connection = try await start(JobNumber(value: 0), file.jobID)
            defer { connection.end() }
            switch await connection.ask(.remove(file), late: {}) {
            case .reply(.done): return nil
            case .reply(.failed(let error, _)): return error
            case .gone(let ending): return BlockError(.inputOutput, "the process that was to do it \(ending)")
            default: return Self.stopped
            }
        } catch {
            return error
        }
    }
}
