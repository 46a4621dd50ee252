internal import BlockIO
internal import Glibc
internal import Synchronization
internal import TestKit

@testable internal import BackupJobs

/// One life of an agent in a history: its guests, its job, its view, until all is done or it is killed.
final class LiveAgent: Sendable {
    let history: LiveHistory
    let sim: SimEngine
    let disk: LiveDisk
    let drive: LiveDrive
    let target: LiveTarget
    let control = JobControl()
    let isFirst: Bool
    private let hasPoint = Flag()
    private let isOver = Flag()

    init(_ history: LiveHistory, life: Int) {
        self.history = history
        isFirst = life == 0
        sim = SimEngine(seed: history.seed &* 31 &+ UInt64(life), limit: .seconds(2 * 3600))
        disk = LiveDisk(history.drive, sim, history.pieces, name: "drive", slowness: history.driveSlowness)
        drive = LiveDrive(disk)
        target = LiveTarget(
            history.target,
            source: (life == 0 ? history.cloning : history.laterCloning).map { (history.drive, $0) },
            clusterSize: history.clusterSize == 65536 ? 4096 : history.clusterSize, sim,
            history.pieces, failing: history.failingWrite, slowness: history.targetSlowness,
            losesWriteBack: history.losesWriteBack, failsForGood: history.failsForGood)
    }

    /// True when everything came to its end.
    func live(killedAfter time: Duration?) -> Bool {
        disk.onChange.withLock { $0 = { [weak self] in self?.noteChange($0) } }
        sim.observe { [self] in
            guard !hasPoint.isSet, drive.state.value.point != nil else { return }
            hasPoint.set()
            if isFirst || !history.state.withLock({ $0.isSwitched }) { history.noteSwitch() }
        }
        let isDone = sim.drive { [self] in
            let killer = Task(executorPreference: sim) {
                guard let time else { return }
                await self.sim.pass(time, cancellable: true)
                if !Task.isCancelled { self.sim.stop() }
            }
            let late = history.pieces.numbers
            // No guest is listened to before the job stands again.
            let job = await resumed()
            await withTaskGroup { group in
                for guest in 0..<LiveHistory.guestCount { group.addTask { await self.guest(guest) } }
                for piece in late { group.addTask { await self.land(piece) } }
                group.addTask { await self.backUp(job) }
                group.addTask { await self.spoil() }
            }
            await close()
            killer.cancel()
        }
        return isDone
    }

    /// How it stands when nothing goes on any more.
    var trouble: String {
        let when = "\(sim.now) \(sim.isBeyondLimit ? "and later than that" : "with nothing to come")"
        sim.adoptThread()
        let unended = history.state.withLock { $0.requests.filter { $0.start > 0 && $0.end == nil }.count }
        let job =
            "speed \(control.speedBytesPerSecond), paused \(control.isPaused), "
            + "in flight \(control.isAnyInFlight), \(unended) requests without an end"
        guard let point = drive.state.value.point else { return "\(when); \(job); no point in time" }
        let state = point.state.value
        return "\(when); \(job); saves \(state.saves.map(\.blocks)), users \(state.stagingUsers), "
            + "over \(state.isOver), sending \(state.isSendingOn), given back \(state.lastGivenBack, default: "never"), "
            + "staging \(point.staging.usage), room \(point.staging.room)"
    }

    private func close() async {
        do throws(BlockError) { try await drive.close() } catch { history.complain("close: \(error)") }
        if drive.state.value.kept.isAnyKept { history.complain("a kept discard was never passed on") }
    }

    // MARK: The job

    private func make() throws(BlockError) -> BackupJob {
        let isNew = !history.state.withLock { $0.isSwitched }
        if isNew { unlink(history.recordPath) }
        let record =
            try isNew
            ? JobRecord.create(
                at: history.recordPath, driveSize: history.size, clusterSize: history.clusterSize,
                log: history.log?.shape ?? .init(), engine: sim)
            : JobRecord.open(history.recordPath, engine: sim)
        let staged = LiveDisk(
            history.staged, sim, history.pieces, name: "staging", slowness: 20, isStaging: true,
            full: history.stagingFullAt)
        return BackupJob(
            drive: drive, base: history.drive.backing == nil ? nil : BaseDisk(history.drive, sim),
            target: target,
            options: history.options, record: record,
            staging: Staging(
                on: history.log.map { log in
                    LiveStaging(
                        staged, log: log.content, isFaulty: history.stagingFullAt != nil,
                        isLosing: history.losesStaged)
                } ?? staged, limit: history.stagingLimit),
            sums: history.sums.map {
                BlockSums(
                    on: LiveSumsFile($0, sim), driveSize: history.size, algorithm: LiveHistory.algorithm)
            },
            buffers: BufferPool(capacity: 16 * history.pieceSize, bufferSize: history.pieceSize),
            control: control, clock: sim.clock)
    }

    /// After a kill: the job, standing again; nil when there was none or it is over.
    private func resumed() async -> BackupJob? {
        let (isSwitched, isOver) = history.state.withLock { ($0.isSwitched, $0.outcome != nil) }
        guard isSwitched, !isOver else { return nil }
        do {
            let job = try make()
            await listen(to: job)
            try await job.resume()
            lookForOrphans(job)
            return job
        } catch let failure as BackupFailure {
            history.state.withLock {
                $0.resumeFailure = failure
                $0.outcome = .some(failure)
            }
        } catch { history.complain("the job does not come back: \(error)") }
        return nil
    }

    /// A kill may have left something in staging where no bit says so, or of what is done: no guest has made a request yet.
    private func lookForOrphans(_ job: BackupJob) {
        let bits = job.record.bits
        let units = Int(history.staged.size / 512)
        for unit in 0..<units where history.staged.value(unit) != 0 {
            let isKnown = bits.saved.isSet(unit / 8)
            if !isKnown || bits.done.isSet(unit / 8 / job.point.blocksPerCluster) {
                let why = isKnown ? "done" : "not saved"
                return history.complain("staging holds unit \(unit) after a restart, which is \(why)")
            }
        }
    }

    private func backUp(_ resumed: BackupJob?) async {
        if history.state.withLock({ $0.outcome != nil }) { return }
        var job = resumed
        if job == nil {
            await sim.pass(history.switchTime)
            do throws(BlockError) { job = try make() } catch { return history.complain("no job: \(error)") }
        }
        guard let job else { return }
        let isNew = resumed == nil
        if isNew { await listen(to: job) }
        async let operating: Void = operate()
        async let steering: Void = steer(job)
        do throws(BackupFailure) {
            if isNew { try await BackupJob.fixPointInTime(of: [job]) }
            async let viewing: Void = view(job)
            try await job.run()
            isOver.set()
            history.state.withLock { $0.isFlushing = true }
            var failure: BackupFailure?
            do throws(BlockError) { try await job.prepare() } catch {
                if !history.losesWriteBack { history.complain("complete: \(error)") }
                failure = .failed(IOFailure(.target, .write, drive.range, error))
            }
            history.state.withLock { $0.isFlushing = false }
            note(failure, job)
            await job.release()
            await viewing
        } catch {
            isOver.set()
            note(error, job)
            await job.leftBehindEnded()
            await job.release()
        }
        await steering
        await operating
        if job.point.state.value.stagingUsers != 0 { history.complain("staging is used after the release") }
        // A kill may have left something where no bit says so; what is done has nothing left.
        let (outcome, done) = history.state.withLock { ($0.outcome, $0.done) }
        guard outcome == .some(nil) else { return }
        lookAtLog(of: job, done: done)
        // What a reader of the view had pinned at the end goes with the file.
        let pinned = job.point.state.value.unpunched
        let retired = job.point.state.value.retired
        for cluster in done.subtracting(pinned)
        where !retired.holds(cluster / retired.clustersPerStretch)
            && history.units(ofCluster: cluster).contains(where: { history.staged.value($0) != 0 })
        {
            history.complain("staging holds something of cluster \(cluster), which is done")
        }
    }

    private func note(_ outcome: BackupFailure?, _ job: BackupJob) {
        let bits = job.record.bits
        history.state.withLock { state in
            state.outcome = .some(outcome)
            state.done = Set((0..<history.clusterCount).filter(bits.done.isSet))
            state.missing = Set(
                (0..<Int(history.size.dividedRoundingUp(by: 4096))).filter(bits.missing.isSet))
            state.isBroken = job.record.isBroken
            state.isCloned = job.isCloned
        }
    }

    /// Something goes to the drive: what the guest overwrites before the freeze must be in the target.
    private func noteChange(_ units: Range<Int>) {
        guard let point = drive.state.value.point, !point.record.isCancelled else { return }
        history.state.withLock { $0.touched.formUnion(history.clusters(of: units)) }
    }

    /// Hears what the job says of errors.
    private func listen(to job: BackupJob) async {
        await job.onError { [history, control] failure, action in
            Trace.note("error: \(failure.side) \(failure.operation) \(failure.range) \(action)")
            switch action {
            case .report: history.complain("an error that ends the job is told twice: \(failure)")
            case .ignore:
                let blocks =
                    Int(failure.range.offset / 4096)..<Int(failure.range.end.dividedRoundingUp(by: 4096))
                history.state.withLock { $0.leftOut.formUnion(blocks) }
            case .stop:
                if !control.isHalted {
                    history.complain("an error that is to halt the job has not: \(failure)")
                }
            }
        }
    }

    /// Resumes a job that an error has halted, and mends what is broken when that has not helped.
    private func operate() async {
        while !isOver.isSet {
            await sim.pass(.microseconds(500 + sim.random { $0.below(20_000) }))
            guard control.isHalted else { continue }
            if await control.quiescent() {
                let (before, taken) = (control.progress, history.state.withLock { $0.pausesTakenBack })
                await sim.pass(.microseconds(sim.random { $0.below(5000) }))
                if control.isQuiescent, control.progress != before,
                    history.state.withLock({ $0.pausesTakenBack }) == taken
                {
                    history.complain("a job that is halted goes on")
                }
            }
            let resumes = history.state.withLock { state in
                state.resumes += 1
                return state.resumes
            }
            if resumes >= history.mendedAfter {
                history.drive.state.withLock { $0.bad = [] }
                history.target.fault.withLock { $0 = nil }
            }
            control.resume()
        }
    }

    private func steer(_ job: BackupJob) async {
        if history.meddles {
            for _ in 0..<3 {
                await sim.pass(.microseconds(sim.random { $0.below(20_000) }))
                control.pause()
                await sim.pass(.microseconds(sim.random { $0.below(8000) }))
                history.state.withLock { $0.pausesTakenBack += 1 }
                control.resume()
                // Of a few bytes a second, or so, no history would see the end.
                let speed = sim.random { $0.below(6 << 20) }
                control.setSpeed(Int64(speed == 0 ? 0 : max(speed, 4096)))
            }
        }
        if let time = history.cancelTime {
            await sim.pass(time)
            control.cancel()
        }
        guard history.options.sync == .none else { return }
        await sim.pass(history.finishTime)
        // What guests overwrite up to the moment of the freeze must be in the target.
        history.state.withLock { $0.isFinishing = true }
        control.finish()
    }

    private func view(_ job: BackupJob) async {
        let view = job.view
        for turn in 0..<20 {
            // The last ones late, when the job has tried in vain what it could.
            await sim.pass(.microseconds(sim.random { $0.below(turn < 12 ? 4000 : 80_000) }))
            let units = Int(history.size / 512)
            let first = sim.random { $0.below(units) }
            let count = sim.random { min(units - first, $0.pick([1, 3, 8, 40, 130, 300])) }
            let range = ByteRange(offset: UInt64(first) * 512, length: UInt64(count) * 512)
            let buffer = IOBuffer(count: count * 512)
            do throws(BlockError) { try await view.readAsServed(range, into: buffer.slice) } catch {
                continue
            }
            Trace.note("view: \(first..<first + count) read")
            let truths = history.state.withLock { Array($0.truth[first..<first + count]) }
            for unit in first..<first + count {
                let slice = buffer[(unit - first) * 512..<(unit - first + 1) * 512]
                let value = DiskContent.value(UnsafeRawBufferPointer(slice.bytes), unit: unit)
                let truth = truths[unit - first]
                if value != truth {
                    return history.complain(
                        "the view shows \(value.map(String.init) ?? "nothing known") in unit \(unit) instead of "
                            + "\(truth.map(String.init) ?? "?")")
                }
            }
        }
    }

    // MARK: Guests

    private func guest(_ number: Int) async {
        // What a kill has left unanswered is sent again.
        let unanswered = history.state.withLock { state in
            state.requests.indices.filter {
                state.requests[$0].guest == number && state.requests[$0].end == nil
            }
        }
        for index in unanswered { await send(index) }
        while true {
            await sim.pass(history.thinkTime / 1000 * sim.random { $0.below(1000) })
            let index = history.state.withLock { state -> Int? in
                guard state.requests.count < LiveHistory.requestCount else { return nil }
                state.requests.append(newRequest(&state, of: number))
                return state.requests.count - 1
            }
            guard let index else { return }
            await send(index)
        }
    }

    private func newRequest(_ state: inout LiveHistory.State, of guest: Int) -> LiveHistory.Request {
        let units = Int(history.size / 512)
        let cluster = history.unitsPerCluster
        state.value += 1
        let value = state.value
        return sim.random { chance in
            func whole() -> Range<Int> {
                let first = chance.below(history.clusterCount) * cluster
                return first..<min(units, first + cluster * (1 + chance.below(2)))
            }
            func some() -> Range<Int> {
                let first = chance.below(units)
                return first..<min(units, first + chance.pick([1, 2, 3, 8, 9, 16, 40, 200]))
            }
            switch chance.below(10) {
            case 0, 1: return .init(kind: .trim, units: whole(), value: 0, guest: guest)
            case 2: return .init(kind: .trim, units: some(), value: 0, guest: guest)
            case 3: return .init(kind: .zero, units: whole(), value: 0, guest: guest)
            case 4: return .init(kind: .zero, units: some(), value: 0, guest: guest)
            case 5: return .init(kind: .write, units: whole(), value: value, guest: guest)
            default: return .init(kind: .write, units: some(), value: value, guest: guest)
            }
        }
    }

    private func send(_ index: Int) async {
        let request = noteStart(index)
        Trace.note("guest: \(request.kind) \(request.units) = \(request.value) sent")
        let range = ByteRange(
            offset: UInt64(request.units.lowerBound) * 512, length: UInt64(request.units.count) * 512)
        do throws(BlockError) {
            switch request.kind {
            case .trim: try await drive.discard(range)
            case .zero: try await drive.writeZeroes(range, mayUnmap: sim.random { $0.oneIn(2) })
            case .write:
                let buffer = IOBuffer(count: Int(range.length))
                for unit in request.units {
                    let start = (unit - request.units.lowerBound) * 512
                    DiskContent.fill(buffer[start..<start + 512].bytes, request.value, unit: unit)
                }
                expectWrites(range)
                guard !drive.writeAtOnce(range, from: buffer.slice) else { break }
                switch await beginWrite(index, range, buffer.slice) {
                case .done: return
                case .failed(let error): throw error
                case .unfinished:
                    noteStart(index)
                    try await drive.write(range, from: buffer.slice)
                }
            }
        } catch {
            // Nothing of it may count as answered; it may have changed nothing, or something.
            if history.options.saveFailure != .breakGuestWrite {
                history.complain("a guest's request fails: \(error)")
            }
            history.state.withLock { $0.requests[index].end = nil }
            return
        }
        noteEnd(index)
    }

    /// A piece of an agent that was killed, where `PiecesInFlight.late` lets it live on.
    private func land(_ piece: Int) async {
        await sim.pass(.microseconds(sim.random { $0.below(20_000) }))
        history.pieces.land(piece)
    }

    /// A sector goes bad.
    private func spoil() async {
        guard isFirst, let time = history.badTime else { return }
        await sim.pass(time)
        let first = sim.random { $0.below(Int(history.size / 512)) }
        let units = first..<min(Int(history.size / 512), first + history.badCount)
        history.state.withLock { state in
            state.hadBad = true
            if history.badReads == nil { state.permanentlyBad.formUnion(units) }
        }
        history.drive.state.withLock { state in
            state.bad.formUnion(units.filter { state.values[$0] != nil })
            state.failuresLeft = history.badReads
        }
    }
}

/// The backing file below a simulated disk.
private final class BaseDisk: BlockDevice {
    private let content: DiskContent
    private let sim: SimEngine
    let name = "base"
    let isReadOnly = true
    let limits = BlockLimits()

    init(_ content: DiskContent, _ sim: SimEngine) {
        self.content = content
        self.sim = sim
    }

    var engine: any IOEngine { sim }
    var size: UInt64 { content.size }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        await sim.latency()
        for unit in Int(range.offset / 512)..<Int(range.end / 512) {
            let start = unit * 512 - Int(range.offset)
            DiskContent.fill(buffer[start..<start + 512].bytes, content.backing?[unit] ?? 0, unit: unit)
        }
    }

    func write(_: ByteRange, from _: IOSlice) async throws(BlockError) {}
    func writeZeroes(_: ByteRange, mayUnmap _: Bool) async throws(BlockError) {}
    func discard(_: ByteRange) async throws(BlockError) {}
    func flush() async throws(BlockError) {}
    func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        [Extent(range, isZero: false, isAllocated: true)]
    }
    func close() async throws(BlockError) {}
}
