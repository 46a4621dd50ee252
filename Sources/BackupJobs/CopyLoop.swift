internal import BlockIO

// How a run works
//
// One loop, on the drive's engine, walks the plan and starts a child task for each chunk while the control permits it;
// a chunk takes a buffer, reads, looks for zeroes, writes, and ends. The loop itself only ever waits for the drive's
// extents and for the signal, which is raised by a chunk that ends, by the control's verbs and by the timer of the
// rate; then it looks at everything again. So there is one place where it is decided what comes next, and "next" is
// decided as late as possible: the size of a chunk follows the speed of this moment, and clusters that are more urgent
// can go before the plan's.
//
// Each cluster is to copy, in flight or done (ClusterMap): a chunk is put in flight before it starts, done when the
// target has taken all of it, to copy again when it failed. A cluster larger than a buffer is copied by one chunk in
// several pieces, one after the other.
//
// A chunk holds at most one buffer, and while it holds it it waits for nothing but its own read and write. So jobs that
// share a pool cannot wait for each other in a circle, whatever their depth.
//
// The first failure is kept, nothing new starts, and the run ends when all chunks have ended; a chunk that has read by
// then does not write any more. A cancel abandons the requests to the target (TargetRequests): chunks that wait for
// them end at once, and what is left is the reads.

/// One run of a job.
struct CopyLoop: Sendable {
    struct State {
        var map: ClusterMap
        var failure: BackupFailure?
    }

    /// Zeroes are written in pieces of this many bytes: few for a large drive, and none that takes long.
    static let zeroChunk: UInt64 = 64 << 20

    let source: any BlockDevice
    let target: any BackupTarget
    let options: BackupJob.Options
    let control: JobControl
    let buffers: BufferPool
    let clock: JobClock
    let requests: TargetRequests
    let clusterSize: UInt64
    /// The unit in which data is looked at for zeroes, in bytes.
    let zeroUnit: Int
    /// The largest read in bytes.
    let pieceSize: UInt64
    /// The largest chunk in bytes: a piece, or a cluster if that is larger.
    let chunkSize: UInt64
    let state: EngineIsolated<State>

    init(_ job: BackupJob) {
        source = job.source
        target = job.target
        options = job.options
        control = job.control
        buffers = job.buffers
        clock = job.clock
        requests = job.requests
        clusterSize = job.clusterSize
        pieceSize = job.pieceSize
        chunkSize = max(job.clusterSize, job.pieceSize)
        zeroUnit = Int(min(max(job.target.clusterSize, 4096), job.pieceSize))
        state = EngineIsolated(
            State(map: ClusterMap(size: job.source.size, clusterSize: job.clusterSize)),
            engine: job.source.engine)
    }

    // MARK: The loop

    /// Copies everything; returns why it did not, if it did not. On the drive's engine.
    func run() async -> BackupFailure? {
        await withDiscardingTaskGroup { chunks in
            var plan = CopyPlan(
                size: source.size, clusterSize: clusterSize, sync: options.sync, joinLength: chunkSize)
            var limiter = RateLimiter(bytesPerSecond: control.speedBytesPerSecond)
            while await step(&plan, &limiter, &chunks) {}
        }
        let (failure, isComplete) = state.withState { ($0.failure, $0.map.isComplete) }
        precondition(failure != nil || isComplete, "a run that succeeds has copied every cluster")
        return failure
    }

    /// Does the next thing, or waits until something has changed; false when nothing is to be started any more and
    /// nothing needs to be waited for but what the group waits for.
    private func step(
        _ plan: inout CopyPlan, _ limiter: inout RateLimiter, _ chunks: inout DiscardingTaskGroup
    ) async -> Bool {
        if control.isCancelled {
            fail(.cancelled)
            requests.abandon()
            chunks.cancelAll()
            return false
        }
        if failure != nil {
            // Chunks that wait for a buffer need not any more.
            chunks.cancelAll()
            return await waitUntilIdle()
        }
        switch plan.next() {
        case .finished:
            return await waitUntilIdle()
        case .extents(let range):
            await lookUp(range, &plan)
        case .run(.notNeeded, let range):
            await pass(range, &plan, copied: 0, notNeeded: range.length)
        case .run(.zeroes, let range):
            if options.targetReadsAsZero {
                await pass(range, &plan, copied: range.length, notNeeded: 0)
            } else if await permitted() {
                start(plan.take(max(Self.zeroChunk, clusterSize)), &chunks, writeZeroes)
            }
        case .run(.data, _):
            await startData(&plan, &limiter, &chunks)
        }
        return true
    }

    private func startData(
        _ plan: inout CopyPlan, _ limiter: inout RateLimiter, _ chunks: inout DiscardingTaskGroup
    ) async {
        limiter.setSpeed(control.speedBytesPerSecond, now: clock.now())
        let delay = limiter.delay(now: clock.now())
        if delay > .zero {
            await sleep(delay)
        } else if await permitted() {
            let range = plan.take(limiter.chunkSize(unit: clusterSize, most: chunkSize))
            limiter.spend(range.length, now: clock.now())
            start(range, &chunks, copy)
        }
    }

    /// Whether a chunk may start; then it counts as in flight. If not, returns after something has changed.
    private func permitted() async -> Bool {
        if control.startChunk() { return true }
        await control.signal.raised()
        return false
    }

    private func pass(
        _ range: ByteRange, _ plan: inout CopyPlan, copied: UInt64, notNeeded: UInt64
    ) async {
        guard control.pass(copied: copied, notNeeded: notNeeded) else { return await control.signal.raised() }
        let range = plan.take(range.length)
        state.withState { $0.map.pass(range) }
    }

    private func lookUp(_ range: ByteRange, _ plan: inout CopyPlan) async {
        do {
            plan.supply(try await source.extents(in: range))
        } catch {
            // Whoever can't say what is there may still be able to read it; if not, that is the error to report.
            plan.supplyUnknown()
        }
    }

    private func waitUntilIdle() async -> Bool {
        guard control.isAnyInFlight else { return false }
        await control.signal.raised()
        return true
    }

    /// Returns after `delay`, or before that when the signal is raised.
    private func sleep(_ delay: Duration) async {
        async let _: Void = raiseSignal(after: delay)
        await control.signal.raised()
        // The timer is cancelled, and its end awaited, at the end of this scope.
    }

    private func raiseSignal(after delay: Duration) async {
        // Cancelled: the signal was raised by somebody else.
        guard (try? await clock.sleep(delay)) != nil else { return }
        control.signal.raise()
    }

    // MARK: Chunks

    private var failure: BackupFailure? { state.withState { $0.failure } }

    private func fail(_ failure: BackupFailure) {
        state.withState { state in
            if state.failure == nil { state.failure = failure }
        }
    }

    private func start(
        _ range: ByteRange, _ chunks: inout DiscardingTaskGroup,
        _ body: @escaping @Sendable (ByteRange) async -> BackupFailure?
    ) {
        state.withState { $0.map.begin(range) }
        chunks.addTask {
            let failure = await body(range)
            state.withState { state in
                if let failure {
                    state.map.giveUp(range)
                    if state.failure == nil { state.failure = failure }
                } else {
                    state.map.finish(range)
                }
            }
            control.chunkEnded(copied: failure == nil ? range.length : 0)
        }
    }

    /// Nothing new is to be begun.
    private var isEnding: Bool { failure != nil || control.isCancelled || requests.isAbandoned }

    private func writeZeroes(_ range: ByteRange) async -> BackupFailure? {
        if isEnding { return .cancelled }
        return await requests.perform { [target] in
            do throws(BlockError) {
                try await target.writeZeroes(range)
                return nil
            } catch {
                return .failed(IOFailure(.target, .writeZeroes, range, error))
            }
        }
    }

    private func copy(_ range: ByteRange) async -> BackupFailure? {
        var rest = range
        while !rest.isEmpty {
            let piece = rest.prefix(pieceSize)
            if let failure = await copyPiece(piece) { return failure }
            rest = rest.dropFirst(piece.length)
        }
        return nil
    }

    private func copyPiece(_ piece: ByteRange) async -> BackupFailure? {
        // Only a cancelled task is not given a buffer.
        guard let buffer = try? await buffers.take() else { return .cancelled }
        let slice = buffer[0..<Int(piece.length)]
        do throws(BlockError) {
            if isEnding {
                buffers.give(buffer)
                return .cancelled
            }
            try await source.read(piece, into: slice)
        } catch {
            buffers.give(buffer)
            return .failed(IOFailure(.source, .read, piece, error))
        }
        if isEnding {
            buffers.give(buffer)
            return .cancelled
        }
        // From here on the buffer belongs to the request, which may outlive the chunk.
        let writer = PieceWriter(target: target, zeroUnit: zeroUnit, skipsZeroes: options.targetReadsAsZero)
        return await requests.perform { [buffers] in
            defer { buffers.give(buffer) }
            return await writer.write(piece, from: slice)
        }
    }
}
