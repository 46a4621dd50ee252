internal import BlockIO

// How a run works
//
// One loop, on the drive's engine, starts a child task for each chunk while the control permits it; a chunk takes a buffer,
// reads, lays over what was saved meanwhile, looks for zeroes, writes, and ends. The loop itself only ever waits for the
// drive's extents and for the signal, which is raised by a chunk that ends, by a guest that overwrites something (unless
// the loop waits for chunks or for the time only), by the control's verbs and by the timer of the rate; then it looks at
// everything again. So there is one place where it is decided what comes next, as late as possible: what the guest is about
// to overwrite goes first, then clusters of which it has overwritten something (CopyLoop+Choosing), then the plan's; the
// size of a chunk follows the speed of this moment, and what is done at once the guest (GuestPace).
//
// Each cluster is to copy, in flight or done (ClusterMap): a chunk is put in flight before it starts, done when the
// target has taken all of it, to copy again when it failed. A cluster larger than a buffer is copied by one chunk in
// several pieces, one after the other.
//
// A chunk holds at most one buffer, and while it holds it it waits for nothing but its own reads and write, and for its
// turn on the thread, which comes. So jobs that share a pool cannot wait for each other in a circle, whatever their depth.
//
// A cancel and the first failure, which is kept, let the guest go at once and abandon the requests to the target
// (TargetRequests), which may hang: nothing new starts, chunks that wait for the target end, and what the run waits for
// is the reads.

/// One run of a job.
struct CopyLoop: Sendable {
    struct State {
        var map: ClusterMap
        var failure: BackupFailure?
        var lookup = Lookup.none
        /// Blocks in flight that the target will lack when their clusters are done.
        var lacking: [Range<Int>] = []
        var beginning = Beginning.toBegin
        var cloning = Cloning.over
        var cloneLength = CloneLength()
        /// The buffers are as good as they can be.
        var isPrepared = false
        /// How much of the drive is read in one step, in bytes.
        var stepLength = UInt64.max
        /// How many requests of the guest come in one turn of the engine, lately.
        var requestsPerTurn: UInt64 = 0
        /// How many parts of the drive, one after the other, could be read without waiting: they stood in memory.
        var partsInMemory = State.manyParts
        /// So many that the copy does not wait for the disk. (What the kernel reads ahead makes it look so now and then.)
        static let manyParts = 64
    }

    /// What is done before the first write, by a task of its own: the loop has to notice a cancel meanwhile.
    enum Beginning { case toBegin, underWay, done }

    /// What the drive is asked about its extents, by a task of its own: the loop has to notice a cancel meanwhile.
    enum Lookup {
        case none, asked
        /// nil: it could not say.
        case answered([Extent]?)
    }

    /// What walks along the drive, kept by the loop itself.
    struct Course {
        var plan: CopyPlan
        var limiter: RateLimiter
        var pace = GuestPace()
    }

    /// Zeroes are written in pieces of this many bytes: few for a large drive, and none that takes long.
    static let zeroChunk: UInt64 = 64 << 20
    /// What the loop goes past in one step, in bytes.
    static let passedAtOnce: UInt64 = 1 << 40

    let point: PointInTime
    let source: any BlockDevice
    let target: any BackupTarget
    let options: BackupJob.Options
    let control: JobControl
    let buffers: BufferShare
    let clock: JobClock
    let requests: TargetRequests
    let sums: BlockSums?
    let clusterSize: UInt64
    /// The unit in which data is looked at for zeroes, in bytes.
    let zeroUnit: Int
    /// The largest read in bytes.
    let pieceSize: UInt64
    /// The largest chunk in bytes: a piece, or a cluster if that is larger.
    let chunkSize: UInt64
    let state: EngineIsolated<State>

    init(_ job: BackupJob, _ point: PointInTime) {
        self.point = point
        source = job.drive.device
        target = job.target
        options = job.options
        control = job.control
        buffers = job.buffers
        clock = job.clock
        requests = job.requests
        sums = job.sums
        clusterSize = job.clusterSize
        pieceSize = job.pieceSize
        chunkSize = max(job.clusterSize, job.pieceSize)
        zeroUnit = Int(min(max(job.target.clusterSize, 4096), job.pieceSize))
        state = EngineIsolated(State(map: ClusterMap(job.record)), engine: job.drive.engine)
    }

    // MARK: The loop

    /// Copies everything; returns why it did not, if it did not. On the drive's engine.
    func run() async -> BackupFailure? {
        point.state.value.isCopying = true
        if target.clones, options.sync == .full, point.clusterCount > 0 { state.value.cloning = .next(0) }
        await withDiscardingTaskGroup { chunks in
            var course = Course(
                plan: CopyPlan(
                    size: source.size, clusterSize: clusterSize, sync: options.sync, joinLength: chunkSize),
                limiter: RateLimiter(bytesPerSecond: control.speedBytesPerSecond))
            while await step(&course, &chunks) {}
        }
        guard failure == nil else { return failure }
        // The last look: nothing that was given up may end as complete (DATAPATH.md rule 4).
        if let lost = point.state.value.failure { fail(.failed(lost)) }
        if failure == nil, control.isSuspended { return .suspended }
        if options.sync == .none { control.endTotal() }
        return failure
    }

    /// Does the next thing, or waits until something has changed; false when nothing is to be started any more and
    /// nothing needs to be waited for but what the group waits for.
    private func step(_ course: inout Course, _ chunks: inout DiscardingTaskGroup) async -> Bool {
        if control.isCancelled { fail(.cancelled) }
        if let lost = point.state.value.failure { fail(.failed(lost)) }
        if let failure {
            // A chunk has found it: whoever waits for the job need not any more.
            fail(failure)
            // Chunks that wait for a buffer, or for the target, need not any more.
            chunks.cancelAll()
            return await waitUntilIdle()
        }
        // The guest is not let go: it is the next agent that goes on.
        if control.isSuspended { return await waitUntilIdle() }
        if options.beforeFirstWrite != nil, state.value.beginning != .done { return await begin(&chunks) }
        course.pace.note(
            point.drive.activity, perTurn: state.value.requestsPerTurn,
            inLongPieces: point.state.value.writes.isInLongPieces,
            waitsForDisk: state.value.partsInMemory < State.manyParts)
        state.value.stepLength = course.pace.allowance.stepLength
        if options.sync == .none, control.isFinishing { point.freeze() }
        if case .next(let cluster) = state.value.cloning {
            await startClone(from: cluster, &chunks)
            return true
        }
        if let clusters = nextAhead() ?? nextUrgent() {
            await startData(clusters, &course, &chunks, take: { _, _ in })
            return true
        }
        if state.value.cloning == .underWay {
            await control.signal.raised()
            return true
        }
        return options.sync == .none ? await waitForGuest() : await goOn(&course, &chunks)
    }

    private func begin(_ chunks: inout DiscardingTaskGroup) async -> Bool {
        if state.value.beginning == .toBegin, let body = options.beforeFirstWrite {
            state.value.beginning = .underWay
            chunks.addTask {
                guard !isEnding else { return control.signal.raise() }
                let failure = await requests.perform { () async -> BackupFailure? in
                    do throws(BlockError) { try await body() } catch {
                        return .failed(IOFailure(.target, .write, ByteRange(offset: 0, length: 0), error))
                    }
                    return nil
                }
                state.withState { state in
                    state.beginning = .done
                    if state.failure == nil, let failure, !isLeft(by: failure) { state.failure = failure }
                }
                control.signal.raise()
            }
        }
        await control.signal.raised()
        return true
    }

    /// Sync `none`: there is nothing to do until the guest overwrites something, or the good end.
    private func waitForGuest() async -> Bool {
        if point.record.isCancelled, !control.isAnyInFlight, point.firstFrozen(after: 0) == nil {
            return false
        }
        await control.signal.raised()
        return true
    }

    // MARK: The plan

    private func goOn(_ course: inout Course, _ chunks: inout DiscardingTaskGroup) async -> Bool {
        switch course.plan.next() {
        case .finished:
            if control.isAnyInFlight { return await waitUntilIdle() }
            // A chunk that failed and is to be tried again, or clusters that a restart has found.
            guard let clusters = state.withState({ $0.map.firstToCopy() }) else { return false }
            await startData(clusters, &course, &chunks, take: { _, _ in })
        case .extents(let range):
            let clusters = point.clusters(of: range)
            let (standing, end) = state.withState { $0.map.run(in: clusters) }
            if case .none = state.value.lookup, standing == .done, end == clusters.upperBound {
                // Whatever is there: nothing of it is to be done any more. (Once the drive was asked, its answer is for this
                // range and must not be taken for that of another.)
                course.plan.supply([Extent(range, isZero: false, isAllocated: true)])
            } else {
                await lookUp(range, &course.plan, &chunks)
            }
        case .run(let fate, let range):
            await follow(fate, range, &course, &chunks)
        }
        return true
    }

    /// Does what the plan says of the start of `range`, as far as it is still to be done and still true.
    private func follow(
        _ fate: CopyPlan.Fate, _ range: ByteRange, _ course: inout Course, _ chunks: inout DiscardingTaskGroup
    ) async {
        let all = point.clusters(of: range)
        let (standing, end) = state.withState { $0.map.run(in: all) }
        let run = point.bytes(of: all.lowerBound..<end)
        switch standing {
        case .done, .inFlight:
            _ = course.plan.take(run.length)
            return
        case .notNeeded:
            return await pass(run, &course.plan, copied: 0, notNeeded: run.length)
        case .toCopy: break
        }
        var part = run
        var fate = fate
        if options.sync == .top {
            // What the record says stands; where it says nothing yet, nothing has changed since the plan looked.
            let clusters = all.lowerBound..<end
            let known = point.record.bits.needKnown
            let isKnown = known.isSet(clusters.lowerBound)
            let same = known.first(in: clusters, where: !isKnown) ?? end
            part = point.bytes(of: clusters.lowerBound..<same)
            if !isKnown {
                part = part.prefix(fate == .notNeeded ? Self.passedAtOnce : chunkSize)
                point.noteNeed(point.clusters(of: part), isNeeded: fate != .notNeeded)
                if fate == .notNeeded { return }  // comes again, as not needed
            } else if fate == .notNeeded {
                fate = .data
            }
        }
        switch fate {
        case .notNeeded: break
        case .zeroes: await startZeroes(part, &course, &chunks)
        case .data:
            await startData(point.clusters(of: part), &course, &chunks) { plan, length in
                _ = plan.take(length)
            }
        }
    }

    /// Zeroes when the plan looked. Where nothing was saved since, they were zeroes at the point in time.
    private func startZeroes(
        _ range: ByteRange, _ course: inout Course, _ chunks: inout DiscardingTaskGroup
    ) async {
        let clusters = point.clusters(of: range)
        var part = range.prefix(
            targetReadsAsZero ? Self.passedAtOnce : max(Self.zeroChunk, clusterSize))
        if let touched = point.firstTouched(part) {
            let cluster = touched / point.blocksPerCluster
            guard cluster > clusters.lowerBound else {
                return await startData(cluster..<cluster + 1, &course, &chunks) { plan, length in
                    _ = plan.take(length)
                }
            }
            part = point.bytes(of: clusters.lowerBound..<cluster)
        }
        if targetReadsAsZero {
            await pass(part, &course.plan, copied: part.length, notNeeded: 0)
        } else if await permitted(course.pace) {
            start(point.clusters(of: course.plan.take(part.length)), &chunks, writeZeroes)
        }
    }

    private func pass(
        _ range: ByteRange, _ plan: inout CopyPlan, copied: UInt64, notNeeded: UInt64
    ) async {
        guard control.pass(copied: copied, notNeeded: notNeeded) else { return await control.signal.raised() }
        _ = plan.take(range.length)
        guard copied > 0 else { return }
        let clusters = point.clusters(of: range)
        do throws(BlockError) {
            try state.withState { state throws(BlockError) in
                try state.map.begin(clusters)
                state.map.finish(clusters)
            }
        } catch {
            fail(.failed(IOFailure(.staging, .write, range, error)))
        }
        point.noteDone(clusters)
        point.drive.passOnKept(in: range)
    }

    private func lookUp(
        _ range: ByteRange, _ plan: inout CopyPlan, _ chunks: inout DiscardingTaskGroup
    ) async {
        switch state.value.lookup {
        case .none:
            state.value.lookup = .asked
            chunks.addTask {
                // Whoever can't say what is there may still be able to read it; if not, that is the error to report.
                let answer = try? await source.extents(in: range)
                state.value.lookup = .answered(answer)
                control.signal.raise()
            }
            await control.signal.raised()
        case .asked:
            await control.signal.raised()
        case .answered(let answer):
            state.value.lookup = .none
            if let answer { plan.supply(answer) } else { plan.supplyUnknown() }
        }
    }

    // MARK: Starting

    /// Starts to copy the first of `clusters`, all to copy, if speed and depth permit; `take` tells the plan how much.
    private func startData(
        _ clusters: Range<Int>, _ course: inout Course, _ chunks: inout DiscardingTaskGroup,
        take: (inout CopyPlan, UInt64) -> Void
    ) async {
        guard state.value.isPrepared else {
            // Then the loop looks at everything again.
            state.value.isPrepared = true
            return await source.engine.blocking { [buffers] in buffers.prepare() }
        }
        course.limiter.setSpeed(control.speedBytesPerSecond, now: clock.now())
        let delay = course.limiter.delay(now: clock.now())
        if delay > .zero {
            await sleep(delay)
        } else if await permitted(course.pace) {
            let most = max(clusterSize, min(chunkSize, course.pace.allowance.chunkSize))
            let length = course.limiter.chunkSize(unit: clusterSize, most: most)
            let range = point.bytes(of: clusters).prefix(length)
            course.limiter.spend(range.length, now: clock.now())
            take(&course.plan, range.length)
            start(point.clusters(of: range), &chunks, copy)
        }
    }

    /// Whether a chunk may start; then it counts as in flight. If not, returns after something has changed.
    private func permitted(_ pace: GuestPace) async -> Bool {
        if control.startChunk(atMost: pace.allowance.depth) { return true }
        // The end of a chunk, or of a pause, raises the signal.
        point.state.value.needsNoSaves = true
        defer { point.state.value.needsNoSaves = false }
        await control.signal.raised()
        return false
    }

    private func start(
        _ clusters: Range<Int>, _ chunks: inout DiscardingTaskGroup,
        _ body: @escaping @Sendable (ByteRange) async -> BackupFailure?
    ) {
        guard putInFlight(clusters) else { return }
        let range = point.bytes(of: clusters)
        chunks.addTask {
            let failure = await body(range)
            let isDone = settle(clusters, failure)
            if isDone {
                point.noteDone(clusters)
                point.retire(clusters)
                point.drive.passOnKept(in: range)
            }
            control.chunkEnded(copied: isDone ? range.length : 0)
        }
    }

    /// Puts the clusters of a chunk that counts as started in flight; where the record has no space for that the run fails, the
    /// chunk has ended, and false is returned.
    func putInFlight(_ clusters: Range<Int>) -> Bool {
        do throws(BlockError) {
            try state.withState { state throws(BlockError) in try state.map.begin(clusters) }
            return true
        } catch {
            fail(.failed(IOFailure(.staging, .write, point.bytes(of: clusters), error)))
            control.chunkEnded(copied: 0)
            return false
        }
    }

    private func waitUntilIdle() async -> Bool {
        guard control.isAnyInFlight else { return false }
        await control.signal.raised()
        return true
    }

    /// Returns after `delay`, or before that when the signal is raised.
    private func sleep(_ delay: Duration) async {
        point.state.value.needsNoSaves = true
        defer { point.state.value.needsNoSaves = false }
        async let _: Void = raiseSignal(after: delay)
        await control.signal.raised()
        // The timer is cancelled, and its end awaited, at the end of this scope.
    }

    private func raiseSignal(after delay: Duration) async {
        // Cancelled: the signal was raised by somebody else.
        guard (try? await clock.sleep(delay)) != nil else { return }
        control.signal.raise()
    }
}
