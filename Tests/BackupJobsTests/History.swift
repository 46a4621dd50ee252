internal import BackupJobs
internal import BlockIO
internal import Glibc
internal import Synchronization

/// One random life of a job: a drive, a target, a pool, faults and interference, all from one seed.
struct History {
    /// What may go wrong in it.
    enum Trouble: CaseIterable { case none, sourceFails, targetFails, cancelled, targetHangs }

    let seed: UInt64
    let trouble: Trouble
    let engine: SimEngine
    let drive: SimDrive
    let target: SimTarget
    let options: BackupJob.Options
    let control = JobControl()
    let pool: BufferPool
    let interferes: Bool
    let initially: UInt8

    init(seed: UInt64, engine shared: SimEngine? = nil, pool sharedPool: BufferPool? = nil) {
        var chance = Chance(seed: seed)
        self.seed = seed
        engine = shared ?? SimEngine(seed: chance.next())
        trouble = chance.oneIn(2) ? .none : chance.pick(Trouble.allCases)
        let sync: BackupJob.Options.Sync = chance.oneIn(2) ? .full : .top
        let readsAsZero = sync == .full && chance.oneIn(2)
        let clusters = chance.below(40)
        let clusterSize: UInt64 = chance.pick([4096, 65536, 65536, 131_072, 2 << 20])
        options = BackupJob.Options(
            sync: sync,
            speedBytesPerSecond: chance.oneIn(4) ? Int64(chance.below(4 << 20)) : 0,
            targetReadsAsZero: readsAsZero, depth: 1 + chance.below(20),
            chunkSize: chance.pick([4096, 65536, 200_000, 1 << 20]))
        drive = SimDrive.random(
            &chance, clusters: clusters, hasBacking: sync == .top || chance.oneIn(2), engine: engine,
            faults: SimDrive.Faults(
                failingRead: trouble == .sourceFails ? chance.below(10) : nil,
                failingExtentsOneIn: chance.oneIn(4) ? 1 + chance.below(4) : nil))
        initially = readsAsZero ? 0 : 0xee
        target = SimTarget(
            size: drive.size, clusterSize: clusterSize, initially: initially, sim: engine,
            faults: SimTarget.Faults(
                failing: trouble == .targetFails ? chance.below(10) : nil,
                hanging: trouble == .targetHangs ? chance.below(10) : nil))
        pool =
            sharedPool
            ?? BufferPool(
                capacity: (1 + chance.below(8)) << 16,
                bufferSize: chance.pick([4096, 65536, 65536]))
        interferes = chance.oneIn(2)
    }

    /// Runs the job to its end on the engine; says what was wrong.
    func play() async -> [String] {
        let watch = Watch(control: control)
        engine.observe { watch.look() }
        let scratch = Scratch(drive, target: target)
        let job = BackupJob(
            drive: LiveDrive(drive), target: target, options: options, record: scratch.record,
            staging: scratch.staging, buffers: pool, control: control, clock: engine.clock)
        var found: [String] = []
        async let interference = interfere()
        do throws(BackupFailure) {
            try await BackupJob.fixPointInTime(of: [job])
            try await job.run()
            target.runIsOver()
            found += judgeSuccess()
        } catch {
            target.runIsOver()
            found += judge(error)
        }
        if drive.inFlight > 0 { found.append("\(drive.inFlight) reads are in flight after the run") }
        target.release()
        await job.leftBehindEnded()
        await job.release()
        if target.inFlight > 0 { found.append("\(target.inFlight) requests after the left-behind ended") }
        found += await interference
        found += watch.complaints
        found += target.violations
        return found
    }

    // MARK: Verdicts

    private func judgeSuccess() -> [String] {
        var found: [String] = []
        switch trouble {
        case .sourceFails: if drive.failed != nil { found.append("a failed read is no failure of the job") }
        case .targetFails: if target.failed != nil { found.append("a failed write is no failure of the job") }
        case .targetHangs, .cancelled, .none: break
        }
        var copied: UInt64 = 0
        let buffer = IOBuffer(count: Int(jobClusterSize))
        for cluster in drive.clusters(of: jobClusterSize) {
            let expected = buffer[0..<Int(cluster.length)].bytes
            let actual = target.content[Int(cluster.offset)..<Int(cluster.end)].bytes
            if options.sync == .top && !drive.isTouched(cluster) {
                expected.fill(initially)
                if expected.isSame(as: actual) { continue }
                // Not knowing better, a job may copy more.
                if drive.faults.failingExtentsOneIn == nil { found.append("\(cluster) is not to be copied") }
            }
            copied += cluster.length
            drive.fill(cluster, expected)
            if !expected.isSame(as: actual) {
                let first = (0..<expected.count).first { expected[$0] != actual[$0] }
                found.append("the target differs in \(cluster), first at its byte \(first ?? -1)")
            }
        }
        if control.progress != JobControl.Progress(current: copied, total: copied) {
            found.append("progress ends as \(control.progress), not \(copied)")
        }
        if target.inFlight > 0 { found.append("\(target.inFlight) requests are in flight after success") }
        return found
    }

    private func judge(_ failure: BackupFailure) -> [String] {
        var found: [String] = []
        switch failure {
        case .cancelled:
            if !control.isCancelled { found.append("cancelled, though nobody did") }
        case .suspended: found.append("suspended, though nobody did")
        case .failed(let failure):
            let expected = failure.side == .source ? drive.failed : target.failed
            if failure.range != expected {
                found.append("failed with \(failure), not at \(String(describing: expected))")
            }
            if (failure.side == .source) != (failure.operation == .read) {
                found.append("\(failure.side) can't \(failure.operation)")
            }
        }
        // What was done is in the target, whole.
        let copied = target.taken.reduce(0) { $0 + $1.length }
        if options.sync == .top || !options.targetReadsAsZero, control.progress.current > copied {
            found.append("progress says \(control.progress.current) of \(copied) copied bytes")
        }
        return found
    }

    private var jobClusterSize: UInt64 { max(65536, target.clusterSize) }

    // MARK: Interference

    /// Does to the job what people do, and lets it go on in the end.
    private func interfere() async -> [String] {
        var found: [String] = []
        for _ in 0..<(interferes ? engine.random { $0.below(12) } : 0) {
            await engine.pass(.microseconds(engine.random { $0.below(60_000) }))
            switch engine.random({ $0.below(5) }) {
            case 0, 1: found += await pauseForAWhile()
            case 2: control.setSpeed(engine.random { Int64($0.below(8 << 20)) })
            case 3: control.setDepth(engine.random { 1 + $0.below(20) })
            default: control.setSpeed(0)
            }
        }
        if trouble == .cancelled || trouble == .targetHangs {
            await engine.pass(.microseconds(engine.random { $0.below(100_000) }))
            if engine.random({ $0.oneIn(3) }) { control.pause() }
            control.cancel()
        }
        return found
    }

    private func pauseForAWhile() async -> [String] {
        control.pause()
        // One that hangs never becomes quiescent, and nobody is left to cancel it.
        if trouble == .targetHangs { control.resume() }
        defer { control.resume() }
        guard await control.quiescent() else { return [] }
        let before = (control.progress, target.requests, drive.reads)
        if drive.inFlight + target.inFlight > 0 { return ["paused with something in flight"] }
        await engine.pass(.milliseconds(200))
        return before == (control.progress, target.requests, drive.reads) ? [] : ["a paused job went on"]
    }
}

/// Looks at a job's progress after each step.
private final class Watch: Sendable {
    private let state: Mutex<(last: JobControl.Progress, complaints: [String])>
    private let control: JobControl

    init(control: JobControl) {
        self.control = control
        state = Mutex((JobControl.Progress(current: 0, total: .max), []))
    }

    var complaints: [String] { state.withLock { $0.complaints } }

    func look() {
        let now = control.progress
        state.withLock { state in
            if now.current > now.total { state.complaints.append("progress beyond its total: \(now)") }
            if now.current < state.last.current { state.complaints.append("progress went back") }
            if now.total > state.last.total { state.complaints.append("the total grew") }
            state.last = now
        }
    }
}
