internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Foundation
internal import Synchronization

// A request to the target is a frame to its process, and the data is where that sees it, too. What the target is, and when
// it is complete or given up, is decided there (`TargetSession`); what is decided here is how long that is waited for:
//
//   giveUp ──► the process gives up and says so ──► it ends
//          └─► no word within `patience` ──► killed, and left behind (`TargetProcesses.leaveBehind`)
//
// The end of a job waits for `moment` only where requests are on their way, as they are when the target is slow or hangs, or
// there is much to remove: from then on it is the business of `TargetProcesses.letGiveUp`.
//
// A write that is on its way keeps its buffer until the process has answered or is gone, since it may still read it. All
// others who wait are let go when the process is abandoned.

/// A job's target in a process of its own.
final class TargetProcess: JobTarget {
    /// How long the end of a job waits for a target that has not answered requests of before, or is large.
    static let moment = Duration.milliseconds(40)
    /// From how many bytes on a target is large: to remove it takes the file system its time.
    private static let largeTarget = 16 << 20
    /// How long a target may take that is left to the next agent.
    private static let patience = Duration.milliseconds(400)
    /// How long one may take that is given up of which is to be kept what can be: its last flush takes its time.
    static let keepingPatience = Duration.seconds(2)

    private struct State {
        var isGivenUp = false
        /// Completion was asked for; `completion` tells when that has returned.
        var isCompleting = false
        var isComplete = false
        var endedWhileFlushing = false
        var failedOperation: JobIOError.Operation?
        var givingUp: Task<Bool, Never>?
    }

    let name: String
    let format: ImageFormat
    let clusterSize: UInt64
    let isProbedRaw: Bool
    let readsAsZero: Bool
    let clones: Bool
    let manifestPath: String
    let resumption: TargetSpec.Resumption?

    let connection: TargetConnection
    private let processes: TargetProcesses
    private let requestedPath: String
    /// For data that does not lie in the shared memory.
    private let bounces: BufferShare
    private let state = Mutex(State())
    private let completion = OneShot<Void>()
    /// Bytes that were written.
    private let written = Atomic(0)

    init(_ opened: OpenedTarget, _ connection: TargetConnection, _ processes: TargetProcesses, path: String) {
        name = opened.name
        format = opened.format
        clusterSize = opened.clusterSize
        isProbedRaw = opened.isProbedRaw
        readsAsZero = opened.readsAsZero
        clones = opened.clones
        manifestPath = opened.manifestPath
        resumption = opened.resumption
        self.connection = connection
        self.processes = processes
        requestedPath = path
        bounces = processes.buffers.share()
    }

    var failedOperation: JobIOError.Operation? { state.withLock { $0.failedOperation } }
    var endedWhileFlushing: Bool { state.withLock { $0.endedWhileFlushing } }

    // MARK: Transfers

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        if let place = buffer.offset(in: processes.memory) {
            try await ask(.write(range, memory: UInt64(place)), .write, range)
            written.wrappingAdd(buffer.count, ordering: .relaxed)
            return
        }
        var done = 0
        while done < buffer.count {
            let count = min(bounces.bufferSize, buffer.count - done)
            let piece = ByteRange(offset: range.offset + UInt64(done), length: UInt64(count))
            let bounce = try await bounces.take()
            defer { bounces.give(bounce) }
            bounce[0..<count].bytes.copyMemory(
                from: UnsafeRawBufferPointer(buffer[done..<done + count].bytes))
            try await write(piece, from: bounce[0..<count])
            done += count
        }
    }

    func writeZeroes(_ range: ByteRange) async throws(BlockError) {
        try await ask(.writeZeroes(range), .write, range, late: {})
    }

    func clone(_ range: ByteRange) async throws(BlockError) {
        try await ask(.clone(range), .write, range, late: {})
        // To take it away takes time, too.
        written.wrappingAdd(Int(range.length), ordering: .relaxed)
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        var done = 0
        while done < buffer.count {
            let count = min(bounces.bufferSize, buffer.count - done)
            let piece = ByteRange(offset: range.offset + UInt64(done), length: UInt64(count))
            let bounce = try await bounces.take()
            guard let place = bounce.slice.offset(in: processes.memory) else {
                preconditionFailure("the pool's buffers lie in the shared memory")
            }
            do throws(BlockError) { try check() } catch {
                bounces.give(bounce)
                throw error
            }
            let outcome = await connection.ask(.read(piece, memory: UInt64(place))) { [bounces] in
                bounces.give(bounce)
            }
            // Until the process is gone it may write there.
            if case .abandoned = outcome { throw givenUp() }
            defer { bounces.give(bounce) }
            // The copy does not read: whoever does is told himself, and the job has not failed.
            try judge(outcome, nil, piece)
            buffer[done..<done + count].bytes.copyMemory(
                from: UnsafeRawBufferPointer(bounce[0..<count].bytes))
            done += count
        }
    }

    private func ask(
        _ request: TargetRequest, _ operation: JobIOError.Operation, _ range: ByteRange? = nil,
        late: (@Sendable () -> Void)? = nil
    ) async throws(BlockError) {
        try check()
        try judge(await connection.ask(request, late: late), operation, range)
    }

    private func check() throws(BlockError) {
        let (isGivenUp, isComplete) = state.withLock { ($0.isGivenUp, $0.isComplete) }
        if isGivenUp { throw givenUp() }
        if isComplete {
            throw BlockError(.cancelled, "Couldn't use \(name): the target is complete, and is closed")
        }
    }

    /// Throws what went wrong; a part of `complete` is noted.
    private func judge(
        _ outcome: TargetConnection.Outcome, _ operation: JobIOError.Operation?, _ range: ByteRange?
    ) throws(BlockError) {
        switch outcome {
        case .reply(.done): return
        case .reply(.failed(let error, let failed)):
            if let operation, operation.isOfComplete { note(failed ?? operation) }
            throw error
        case .gone(let ending):
            // When it was to end that is not an error of its own.
            try check()
            if let operation, operation.isOfComplete { note(operation) }
            throw BlockError(
                .gone,
                "Couldn't go on with \(name): the process that writes it (\(connection.process.processID)) \(ending)",
                range: range)
        case .abandoned: throw givenUp()
        case .reply:
            throw BlockError(
                .gone, "Couldn't go on with \(name): the process that writes it gave a wrong answer",
                range: range)
        }
    }

    private func note(_ operation: JobIOError.Operation) {
        state.withLock { state in
            if state.failedOperation == nil { state.failedOperation = operation }
        }
    }

    private func givenUp() -> BlockError {
        BlockError(.cancelled, "Couldn't go on with \(name): the target was given up")
    }

    // MARK: The end

    func putManifest(_ content: [UInt8], isFinal: Bool) async throws(BlockError) {
        try check()
        let outcome = await connection.ask(.putManifest(Data(content), isFinal: isFinal), late: {})
        // The last one is part of making the target durable.
        if isFinal, case .gone = outcome { state.withLock { $0.endedWhileFlushing = !$0.isGivenUp } }
        try judge(outcome, .write, nil)
    }

    func prepare() async throws(BlockError) {
        try check()
        let outcome = await connection.ask(.prepare, late: {})
        if case .gone = outcome { state.withLock { $0.endedWhileFlushing = !$0.isGivenUp } }
        try judge(outcome, .flush, nil)
    }

    func publish() async throws(BlockError) {
        try check()
        // One that is given up by now is never asked to: it will not be complete.
        guard
            state.withLock({ state in
                state.isCompleting = !state.isGivenUp
                return state.isCompleting
            })
        else { throw givenUp() }
        defer { completion.fulfil(()) }
        try judge(await connection.ask(.publish, late: {}), .finish, nil)
        state.withLock { $0.isComplete = true }
        connection.end()
    }

    func leave() async {
        let isLeft = state.withLock { state in
            defer { state.isGivenUp = true }
            return !state.isGivenUp && !state.isComplete
        }
        guard isLeft else { return }
        let answer = OneShot<Void>()
        let connection = connection
        // Ends at the latest when the process does.
        Task {
            _ = await connection.ask(.leave, late: {})
            answer.fulfil(())
        }
        _ = await answer.wait(atMost: Self.patience)
        connection.end()
    }

    func abandon(keep: Bool) async { _ = await giveUp(keep: keep) }

    /// What is to be kept is waited for in any case, as is the outcome of a completion that has begun.
    func giveUp(keep: Bool, atOnce: Bool) async -> Bool {
        let task = state.withLock { state -> Task<Bool, Never>? in
            guard !state.isComplete else { return nil }
            state.isGivenUp = true
            if let begun = state.givingUp { return begun }
            let mayLeave = atOnce && !keep && !state.isCompleting
            let task = Task { await self.end(keep: keep, mayLeave: mayLeave) }
            state.givingUp = task
            return task
        }
        return await task?.value ?? true
    }

    private func end(keep: Bool, mayLeave: Bool) async -> Bool {
        let answer = OneShot<TargetConnection.Outcome>()
        let connection = connection
        // Ends at the latest when the process is abandoned.
        Task { answer.fulfil(await connection.ask(.giveUp(keep: keep), late: {})) }
        if mayLeave, await answer.wait(atMost: Self.moment) == nil,
            connection.unanswered > 1 || written.load(ordering: .relaxed) > Self.largeTarget
        {
            await processes.letGiveUp(
                connection, paths: [requestedPath, name], answer: answer)
            return false
        }
        let outcome = await answer.wait(atMost: keep ? Self.keepingPatience : processes.patience)
        if case .reply(.givenUp(let isComplete)) = outcome {
            connection.end()
            state.withLock { $0.isComplete = $0.isComplete || isComplete }
            return isComplete
        }
        // No word, or none that could be right: the process is dead, or does not count any more.
        connection.abandon()
        if state.withLock({ $0.isCompleting }) { _ = await completion.wait() }
        if state.withLock({ $0.isComplete }) { return true }
        await processes.leaveBehind(connection, paths: [requestedPath, name], keep: keep)
        return false
    }
}
