internal import BackupJobs
internal import BlockIO
internal import Logging
internal import Synchronization

/// A target's process: what the agent's program is when it is started for one target.
///
/// It has nothing of the agent's but a socket, the memory of the buffers and standard error. The thread that reads requests
/// never waits for a disk, so that the process ends at once when the agent's end of the socket closes: then nobody is there
/// any more who could count on what it does. What hangs in the kernel keeps it; its locks are held until then.
package enum TargetServer {
    /// The word on the command line that makes the agent's program a target's process.
    package static let flag = "--target-process"

    /// True when this process was started as a target's.
    package static var isWanted: Bool {
        CommandLine.arguments.count == 3 && CommandLine.arguments[1] == flag
    }

    /// Its name in lists of processes, of which `run` makes use: the job is its last word.
    static func processName(jobID: String) -> String { "drive-backup-target \(jobID)" }

    /// Serves the agent until that closes the socket. Blocks its thread.
    package static func run() -> Never {
        let kind = EngineKind(rawValue: CommandLine.arguments[2]) ?? .threads
        let jobID = CommandLine.arguments.first?.split(separator: " ").last.map(String.init) ?? ""
        OwnProcess.becomeChild(named: "target \(jobID)")
        let socket = PairedSocket(adopting: ChildProcess.socketNumber)
        do throws(BlockError) {
            let memory = try SharedMemory(adopting: ChildProcess.memoryNumber)
            try Server(socket, memory, kind).run()
            OwnProcess.end(status: 0)
        } catch {
            // The agent sees the end, and says so.
            OwnProcess.end(status: 1)
        }
    }
}

private final class Server: Sendable {
    private let line: AgentLine
    private let memory: SharedMemory
    private let engine: any IOEngine
    /// The engine, if it is a ring.
    private let ring: RingEngine?
    private let claims: RemoteClaims
    private let session = Mutex<(any JobTarget)?>(nil)

    init(_ socket: PairedSocket, _ memory: SharedMemory, _ kind: EngineKind) {
        ring = kind == .ring ? Self.makeRing(socket) : nil
        // Its thread reads requests: no call of it may wait for a disk.
        ring?.share()
        engine = ring ?? ThreadsEngine(name: "target", writesItself: true)
        line = AgentLine(socket, engine)
        self.memory = memory
        claims = RemoteClaims(line)
    }

    private static func makeRing(_ socket: PairedSocket) -> RingEngine? {
        do throws(BlockError) { return try socket.makeRing(name: "target") } catch {
            // The agent's rings were not refused, when it started. Threads do the same work.
            Logger(label: "target") { _ in AgentLog(level: .warning) }
                .warning("\(error.message): threads write this target")
            return nil
        }
    }

    /// Takes in requests until there are no more. Blocks.
    func run() throws(BlockError) {
        if let ring {
            // One change of thread less for each request; what the ring does for the disk holds no thread.
            let end = Answer<Result<Void, BlockError>>()
            // Its end is waited for below.
            Task(executorPreference: ring) {
                do throws(BlockError) {
                    var requests = Requests()
                    while try self.takeIn(
                        await self.line.socket.receive(into: requests.buffer, on: ring), &requests)
                    {}
                    end.give(.success(()))
                } catch {
                    end.give(.failure(error))
                }
            }
            try end.take().get()
        } else {
            var requests = Requests()
            while try takeIn(line.socket.receiveBlocking(into: requests.buffer), &requests) {}
        }
    }

    /// What has arrived of requests.
    private struct Requests {
        let buffer = IOBuffer(count: 16 << 10)
        var frames = TargetFrames()
    }

    /// False at the end.
    private func takeIn(_ count: Int, _ requests: inout Requests) throws(BlockError) -> Bool {
        guard count > 0 else { return false }
        requests.frames.add(UnsafeRawBufferPointer(requests.buffer[0..<count].bytes))
        while let frame = try requests.frames.next() { begin(try frame.request(), id: frame.id) }
        return true
    }

    private func begin(_ request: TargetRequest, id: UInt64) {
        if case .claimed(let refusal) = request { return claims.answer(id, refusal) }
        // It ends with the process, if not before.
        Task(executorPreference: engine) { self.line.send(await self.serve(request), id: id) }
    }

    private func serve(_ request: TargetRequest) async -> TargetReply {
        switch request {
        case .check(let spec):
            return await refusable { () async throws(AgentError) in
                try await self.sessions.check(spec)
                return .done
            }
        case .open(let spec):
            return await refusable { () async throws(AgentError) in
                let target = try await self.sessions.open(spec)
                self.take(target)
                return .opened(OpenedTarget(target))
            }
        case .reopen(let spec):
            return await refusable { () async throws(AgentError) in
                switch try await self.sessions.reopen(spec) {
                case .open(let target):
                    self.take(target)
                    return .opened(OpenedTarget(target))
                case .published: return .published
                }
            }
        case .write(let range, let place):
            return await perform { (target) async throws(BlockError) in
                try await target.write(range, from: try self.slice(range, place))
            }
        case .writeZeroes(let range):
            return await perform { (target) async throws(BlockError) in try await target.writeZeroes(range) }
        case .read(let range, let place):
            return await perform { (target) async throws(BlockError) in
                try await target.read(range, into: try self.slice(range, place))
            }
        case .clone(let range):
            return await perform { (target) async throws(BlockError) in try await target.clone(range) }
        case .prepare:
            return await perform { (target) async throws(BlockError) in try await target.prepare() }
        case .publish:
            return await perform { (target) async throws(BlockError) in try await target.publish() }
        case .putManifest(let content, let isFinal):
            return await perform { (target) async throws(BlockError) in
                try await target.putManifest([UInt8](content), isFinal: isFinal)
            }
        case .giveUp(let keep):
            let target = session.withLock { $0 }
            return .givenUp(isComplete: await target?.giveUp(keep: keep) ?? false)
        case .leave:
            let target = session.withLock { $0 }
            await target?.leave()
            return .done
        case .remove(let file):
            let removed: Result<Void, BlockError> = await engine.blocking {
                Result { () throws(BlockError) in try file.remove() }
            }
            do throws(BlockError) { try removed.get() } catch { return .failed(error, nil) }
            return .done
        case .claimed: return .done
        }
    }

    /// The target is open. On the engine.
    private func take(_ target: any JobTarget) {
        session.withLock { $0 = target }
        // Where all that is written is copied, by this thread or by those that it starts, guests and who serves them come first.
        if (target as? TargetSession)?.bypassesCache != true {
            OwnProcess.yieldToOthers(niceness: 10)
        }
    }

    private var sessions: TargetSessions { TargetSessions(claims: claims, engine: engine) }

    private func refusable(_ body: () async throws(AgentError) -> TargetReply) async -> TargetReply {
        do throws(AgentError) { return try await body() } catch { return .refused(error) }
    }

    private func perform(_ body: (any JobTarget) async throws(BlockError) -> Void) async -> TargetReply {
        guard let target = session.withLock({ $0 }) else {
            return .failed(BlockError(.invalid, "There is no open target"), nil)
        }
        do throws(BlockError) {
            try await body(target)
            return .done
        } catch {
            return .failed(error, target.failedOperation)
        }
    }

    /// The bytes of a request, which lie in the shared memory.
    private func slice(_ range: ByteRange, _ place: UInt64) throws(BlockError) -> IOSlice {
        let end = place.addingReportingOverflow(range.length)
        guard !end.overflow, end.partialValue <= UInt64(memory.count) else {
            throw BlockError(.invalid, "The shared memory has no \(range.length) bytes at \(place)")
        }
        return IOBuffer(in: memory, at: Int(place), count: Int(range.length)).slice
    }
}

/// The process's side of the socket. What is said in one turn of the engine is sent together.
private final class AgentLine: Sendable {
    private struct State {
        var outgoing: [UInt8] = []
        var isSending = false
    }

    let socket: PairedSocket
    private let engine: any IOEngine
    private let state = Mutex(State())

    init(_ socket: PairedSocket, _ engine: any IOEngine) {
        self.socket = socket
        self.engine = engine
    }

    func send(_ reply: TargetReply, id: UInt64) {
        let isFree = state.withLock { state in
            TargetFrame(reply, id: id).append(to: &state.outgoing)
            defer { state.isSending = true }
            return !state.isSending
        }
        guard isFree else { return }
        // A thread of its own goes on to do what it tells of.
        guard engine.isCurrent else { return sendAll() }
        // Ends when all is sent.
        Task(executorPreference: engine) { self.sendAll() }
    }

    private func sendAll() {
        while let bytes = next() {
            // Nobody is there who would hear it: the reader ends the process.
            guard socket.sendBlocking(bytes) else { return }
        }
    }

    private func next() -> [UInt8]? {
        state.withLock { state in
            state.isSending = !state.outgoing.isEmpty
            defer { state.outgoing = [] }
            return state.outgoing.isEmpty ? nil : state.outgoing
        }
    }
}

/// The agent's knowledge of files, asked over the socket.
private final class RemoteClaims: TargetClaims {
    private struct State {
        var lastID: UInt64 = 0
        var questions: [UInt64: Answer<AgentError?>] = [:]
    }

    private let line: AgentLine
    private let state = Mutex(State())

    init(_ line: AgentLine) { self.line = line }

    /// Waits for the agent's answer: not on the engine's own thread.
    func claim(
        _ identities: [FileIdentity], path: String, forTargetOf job: JobNumber, id: String
    ) throws(AgentError) {
        let answer = Answer<AgentError?>()
        let question = state.withLock { state in
            state.lastID += 1
            state.questions[state.lastID] = answer
            return state.lastID
        }
        line.send(.claim(identities, path: path), id: question)
        if let refusal = answer.take() { throw refusal }
    }

    func answer(_ question: UInt64, _ refusal: AgentError?) {
        state.withLock { $0.questions.removeValue(forKey: question) }?.give(refusal)
    }

    func release(_ holder: FileClaims.Holder) { line.send(.released, id: 0) }

    func release(_ identity: FileIdentity, ofTarget job: JobNumber) {
        line.send(.releasedFile(identity), id: 0)
    }

    func made(_ file: TargetLeftover) { line.send(.made(file), id: 0) }
}
