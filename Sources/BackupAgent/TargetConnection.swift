internal import BlockIO
internal import Synchronization

/// The agent's side of one target's process.
///
/// Requests are sent from whichever thread makes them, many at a time, and without a wait: the socket takes them at once, or
/// a task of the engine sends them when there is room. Replies arrive on the engine and resume who asked.
final class TargetConnection: Sendable {
    /// What comes of a request.
    enum Outcome: Sendable {
        case reply(TargetReply)
        /// The process is gone, and will never answer.
        case gone(ChildProcess.Ending)
        /// The process was abandoned; it may still be there, and do what it was asked for.
        case abandoned
    }

    private struct Waiting {
        var continuation: UnsafeContinuation<Outcome, Never>?
        var late: (@Sendable () -> Void)?
    }

    private struct State {
        var lastID: UInt64 = 0
        var waiting: [UInt64: Waiting] = [:]
        var outgoing: [UInt8] = []
        /// A task sends what is there, and what comes meanwhile.
        var isSending = false
        var isAbandoned = false
        var ending: ChildProcess.Ending?
        var made: TargetLeftover?
    }

    let job: JobNumber
    let jobID: String
    let process: ChildProcess
    /// Fulfilled when the process is gone, with its locks and all it had open.
    let gone = OneShot<ChildProcess.Ending>()

    private let claims: FileClaims
    private let engine: any IOEngine
    private let state = Mutex(State())

    init(_ process: ChildProcess, job: JobNumber, jobID: String, claims: FileClaims, engine: any IOEngine) {
        self.process = process
        self.job = job
        self.jobID = jobID
        self.claims = claims
        self.engine = engine
    }

    var holder: FileClaims.Holder { .target(job, jobID: jobID) }

    /// The file that the process has made or may have made, if there is one.
    var made: TargetLeftover? { state.withLock { $0.made } }

    /// How many requests the process has not answered.
    var unanswered: Int { state.withLock { $0.waiting.count } }

    // MARK: Asking

    /// Sends a request and waits for what comes of it. With `late`, an abandoned process is not waited for: the outcome is
    /// `.abandoned`, and `late` is called when the process has answered or is gone.
    func ask(_ request: TargetRequest, late: (@Sendable () -> Void)? = nil) async -> Outcome {
        await withUnsafeContinuation { continuation in
            let outcome: Outcome? = state.withLock { state in
                if let ending = state.ending { return .gone(ending) }
                if state.isAbandoned, late != nil { return .abandoned }
                state.lastID += 1
                state.waiting[state.lastID] = Waiting(continuation: continuation, late: late)
                send(TargetFrame(request, id: state.lastID), &state)
                return nil
            }
            guard let outcome else { return }
            if case .abandoned = outcome { late?() }
            continuation.resume(returning: outcome)
        }
    }

    /// Sends at once what the socket takes; the rest is the engine's.
    private func send(_ frame: TargetFrame, _ state: inout State) {
        frame.append(to: &state.outgoing)
        guard !state.isSending else { return }
        // Without a receiver the process has ended, and its end tells everybody.
        let count = process.socket.sendNow(state.outgoing[...]) ?? state.outgoing.count
        guard count < state.outgoing.count else { return state.outgoing.removeAll(keepingCapacity: true) }
        state.outgoing.removeFirst(count)
        state.isSending = true
        // Ends when all is sent, or nobody receives any more.
        Task(executorPreference: engine) { await self.sendRest() }
    }

    private func sendRest() async {
        while true {
            let bytes: [UInt8] = state.withLock { state in
                defer { state.outgoing = [] }
                state.isSending = !state.outgoing.isEmpty
                return state.outgoing
            }
            var rest = bytes[...]
            while !rest.isEmpty, let count = await process.socket.send(rest, on: engine) {
                rest = rest.dropFirst(count)
            }
            if bytes.isEmpty { return }
        }
    }

    // MARK: Hearing

    /// Begins to hear what the process says: from then on the engine does not end before that does, or is forgotten.
    func listen() -> Task<Void, Never> { Task(executorPreference: engine) { await self.receive() } }

    /// Takes in what the process says until it is gone; then nobody waits for it any more.
    func run(_ receiving: Task<Void, Never>) async {
        let ending = await process.end()
        // What it said last is heard, too; and the disk may still be reading what the process has asked it to write: its end of
        // the socket stays open until that is over.
        await receiving.value
        let waiting = state.withLock { state in
            state.ending = ending
            defer { state.waiting = [:] }
            return state.waiting.values
        }
        for request in waiting {
            guard let continuation = request.continuation else {
                request.late?()
                continue
            }
            continuation.resume(returning: .gone(ending))
        }
        gone.fulfil(ending)
    }

    private func receive() async {
        let buffer = IOBuffer(count: 16 << 10)
        var frames = TargetFrames()
        var isTrusted = true
        while true {
            let count = await process.socket.receive(into: buffer, on: engine)
            guard count > 0 else { return }
            guard isTrusted else { continue }
            frames.add(UnsafeRawBufferPointer(buffer[0..<count].bytes))
            do throws(BlockError) {
                while let frame = try frames.next() { take(try frame.reply(), id: frame.id) }
            } catch {
                // Nothing that it says can be trusted; its end, which is waited for, fails whoever waits.
                isTrusted = false
                process.kill()
            }
        }
    }

    private func take(_ reply: TargetReply, id: UInt64) {
        switch reply {
        case .claim(let identities, let path):
            var refusal: AgentError?
            do throws(AgentError) {
                try claims.claim(identities, path: path, forTargetOf: job, id: jobID)
            } catch {
                refusal = error
            }
            state.withLock { send(TargetFrame(.claimed(refusal), id: id), &$0) }
        case .released: claims.release(holder)
        case .releasedFile(let identity): claims.release(identity, ofTarget: job)
        case .made(let file): state.withLock { $0.made = file }
        default:
            guard let request = state.withLock({ $0.waiting.removeValue(forKey: id) }) else { return }
            guard let continuation = request.continuation else {
                request.late?()
                return
            }
            continuation.resume(returning: .reply(reply))
        }
    }

    // MARK: The end

    /// Lets the process end: it has nothing more to do.
    func end() { process.socket.endSending() }

    /// Kills the process, and lets go of those who do not have to wait for it.
    func abandon() {
        process.kill()
        let leaving = state.withLock { state in
            state.isAbandoned = true
            var leaving: [UnsafeContinuation<Outcome, Never>] = []
            for (id, request) in state.waiting where request.late != nil {
                if let continuation = request.continuation { leaving.append(continuation) }
                state.waiting[id]?.continuation = nil
            }
            return leaving
        }
        for continuation in leaving { continuation.resume(returning: .abandoned) }
    }

    /// Leaves a process that is still there to itself, at the agent's own end: nothing of it is heard any more. Whoever
    /// waits for it goes on waiting, since the engine that he runs on ends, too.
    func forget() {
        state.withLock { $0.waiting = [:] }
        process.socket.shutDown()
    }
}
