internal import BlockIO
internal import Glibc
internal import Synchronization
internal import TestKit

@testable internal import BackupJobs

/// What happened in a history, step by step, where DRIVE_BACKUP_TRACE is set: to be read when one has failed.
enum Trace {
    static let isOn = getenv("DRIVE_BACKUP_TRACE") != nil

    static func note(_ text: @autoclosure () -> String) {
        if isOn { print(text()) }
    }
}

/// One random history of a drive under guests with one backup, from a seed: many requests in flight, kills, bad sectors,
/// full staging, late saves, a reader of the point in time. At the end the target must hold the point in time and the
/// drive what the guests were told.
final class LiveHistory: Sendable {
    struct Request: Sendable {
        enum Kind: Sendable { case write, zero, trim }
        var kind: Kind
        var units: Range<Int>
        var value: UInt32
        /// Whose it is.
        var guest: Int
        /// Counted in turns of the history; nil: not yet.
        var start = 0
        var end: Int?
        /// Sent, and to be sent once more: the drive knows nothing of it.
        var isAtRest = false
        /// In flight at the switch.
        var isBefore = false
    }

    struct State {
        var requests: [Request] = []
        var turn = 0
        var value: UInt32 = 10
        /// The truth, unit by unit, once it is settled.
        var truth: [UInt32?]
        /// What units may be at the switch.
        var isSwitched = false
        /// Clusters of the top image (`top`).
        var isNeeded: [Bool?]
        var touched: Set<Int> = []
        var isFinishing = false
        /// The target is being completed: a kill then fails the job.
        var isFlushing = false
        /// What the record said at the end.
        var done: Set<Int> = []
        var missing: Set<Int> = []
        var isBroken = false
        var isCloned = false
        var complaints: [String] = []
        var outcome: BackupFailure??
        var resumeFailure: BackupFailure?
        /// Units that became bad.
        var hadBad = false
        var wasKilled = 0
        /// Units of the drive that became bad for good.
        var permanentlyBad: Set<Int> = []
        /// Of how many blocks of data the digests were compared.
        var digestsCompared = 0
        /// Blocks that the job said to have left out.
        var leftOut: Set<Int> = []
        /// How often somebody resumed a job that an error had halted.
        var resumes = 0
        /// How often somebody took back a pause, who may have resumed a job that was halted meanwhile.
        var pausesTakenBack = 0
    }

    /// Each has one request in flight at most.
    static let guestCount = 6
    static let algorithm = DigestAlgorithm.xxh3
    /// How many requests they send together.
    static let requestCount = 24

    let seed: UInt64
    let options: BackupJob.Options
    let clusterSize: UInt64
    let size: UInt64
    let drive: DiskContent
    let staged: DiskContent
    /// The log of staging, and its part of the file. nil: there is no room for one.
    let log: (shape: StagingLog.Shape, content: LogContent)?
    /// nil: a job without digests.
    let sums: SumsContent?
    /// The size of the copy's buffers in bytes.
    let pieceSize: Int
    let target: LiveTarget.Content
    let initially: [UInt32]
    let pieces = PiecesInFlight()
    let stagingLimit: UInt64?
    let failingWrite: Int?
    let targetSlowness: Int
    let driveSlowness: Int
    let switchTime: Duration
    let killTimes: [Duration]
    let badTime: Duration?
    let finishTime: Duration
    let cancelTime: Duration?
    let meddles: Bool
    /// How long a guest waits at most before its next request.
    let thinkTime: Duration
    /// Part of what was written to the target cannot be written back: its flush is told so, once.
    let losesWriteBack: Bool
    /// The number of the write to staging for which the file system has no space.
    let stagingFullAt: Int?
    /// What was written to staging, where that has a log, can be lost later: that is told once.
    let losesStaged: Bool
    /// What of the target cannot be written.
    let targetFault: LiveTarget.Content.Fault?
    /// The failing write is one that cannot be tried again.
    let failsForGood: Bool
    /// Whether the target can be cloned to; nil: nobody is to try.
    let cloning: LiveTarget.Content.Cloning?
    /// The same after a kill: what could be cloned need not be so any more.
    let laterCloning: LiveTarget.Content.Cloning?
    /// How many sectors go bad, and after how many reads they can be read again; nil: never.
    let badCount: Int
    let badReads: Int?
    /// After how many times of resuming the job in vain somebody mends what is broken.
    let mendedAfter: Int
    let recordPath: String
    let state: Mutex<State>

    init(seed: UInt64, directory: String) {
        var chance = Chance(seed: seed)
        self.seed = seed
        recordPath = "\(directory)/record-\(seed)"
        let sync: BackupJob.Options.Sync = [.full, .top, .none][Int(seed % 3)]
        let hasBacking = sync == .top || chance.oneIn(3)
        clusterSize = chance.oneIn(12) ? chance.pick([131_072, 262_144, 2 << 20]) : 65536
        let clusters = clusterSize > 262_144 ? 3 : sync == .top ? 5 : 3 + chance.below(2)
        size = UInt64(clusters) * clusterSize - (chance.oneIn(3) ? 512 * UInt64(1 + chance.below(100)) : 0)
        var options = BackupJob.Options(
            sync: sync, speedBytesPerSecond: chance.oneIn(2) ? Int64(1 << 20 + chance.below(8 << 20)) : 0,
            targetReadsAsZero: sync == .full && chance.oneIn(2), depth: 1 + chance.below(4),
            chunkSize: chance.pick([16384, 65536, 1 << 20]))
        options.onSourceError = chance.pick([.ignore, .ignore, .report, .stop, .enospc])
        options.onTargetError = chance.pick([.report, .ignore, .stop, .enospc, .auto])
        options.saveFailure = chance.oneIn(8) ? .breakGuestWrite : .breakSnapshot
        options.saveTimeout = chance.oneIn(8) ? .milliseconds(20 + chance.below(40)) : .seconds(3600)
        options.stagingFull = chance.oneIn(3) ? .stall : .fail
        options.givenBackTogether = [1, 2, 16][Int(seed / 3 % 3)] * clusterSize
        options.forgottenAtOnce = [1, 20, 256][Int(seed / 5 % 3)]
        options.soon = chance.oneIn(2) ? .zero : .seconds(4)
        // On so small a drive nearly all that the guest does is one piece behind the other.
        options.sequentialWrites = .init(
            least: [16384, 65536, .max][Int(seed / 9 % 3)], tolerance: clusterSize / 2,
            lead: UInt64(seed / 27 % 2) * clusterSize, farthest: 2 * clusterSize, longPiece: 16384)
        self.options = options
        stagingLimit = chance.oneIn(5) ? UInt64(1 + chance.below(30)) * 4096 : nil
        failingWrite = chance.oneIn(20) ? 1 + chance.below(4) : nil
        targetSlowness = chance.pick([1, 1, 10, 50])
        driveSlowness = chance.pick([3, 10, 100])
        switchTime = .microseconds(chance.below(8000))
        let killCount = chance.pick([0, 0, 1, 2, 2])
        killTimes = (0..<killCount).map { _ in .microseconds(500 + chance.below(60_000)) }
        badTime = chance.oneIn(4) ? .microseconds(chance.below(30_000)) : nil
        finishTime = .microseconds(2000 + chance.below(80_000))
        cancelTime = chance.oneIn(20) ? .microseconds(chance.below(60_000)) : nil
        meddles = chance.oneIn(3)
        thinkTime = .microseconds(chance.pick([2000, 6000, 15_000, 40_000]))
        losesWriteBack = chance.oneIn(10)
        stagingFullAt = chance.oneIn(10) ? 1 + chance.below(6) : nil
        losesStaged = chance.oneIn(10)
        failsForGood = chance.oneIn(4)
        badCount = chance.pick([1, 1, 9, 40])
        // Fewer than anybody tries.
        let isPatient = options.saveTimeout >= .seconds(1)
        badReads = chance.oneIn(2) ? 1 + chance.below(isPatient ? 4 : 1) : nil
        mendedAfter = 1 + chance.below(3)

        let units = Int(size / 512)
        var values: [UInt32?] = []
        let per = Int(DiskContent.allocationUnit / 512)
        while values.count < units {
            let kind = chance.below(hasBacking ? 6 : 4)
            let value: UInt32? = kind == 0 ? 0 : kind < 4 ? UInt32(1 + chance.below(3)) : nil
            let count = hasBacking ? per : 8 * (1 + chance.below(20))
            values += Array(repeating: value, count: min(count, units - values.count))
        }
        let backing = hasBacking ? (0..<units).map { UInt32(($0 / 24) % 3 == 0 ? 0 : 5) } : nil
        drive = DiskContent(size: size, values: values, backing: backing)
        let stagedSize = size.roundedUp(toMultipleOf: 4096)
        staged = DiskContent(
            size: stagedSize, values: Array(repeating: 0, count: Int(stagedSize / 512)), backing: nil)
        // With a generator of its own: histories that were found stay what they were.
        log = Self.log(seed)
        target = LiveTarget.Content(units: units)
        if chance.oneIn(4) {
            let first = chance.below(units)
            targetFault = LiveTarget.Content.Fault(
                units: first..<min(units, first + chance.pick([1, 8, 40, 200])),
                errno: chance.pick([EIO, ENOSPC, EDQUOT, EFBIG]),
                failuresLeft: chance.oneIn(2) ? 1 + chance.below(4) : nil)
        } else {
            targetFault = nil
        }
        target.fault.withLock { [targetFault] in $0 = targetFault }
        cloning = chance.pick([nil, .impossible, .fails(from: 1 + chance.below(2)), .works, .works])
        laterCloning = chance.pick([cloning, cloning, nil, cloning.map { _ in .impossible }])
        let hasSums = chance.oneIn(2) && options.chunkSize >= ContentDigests.blockSize
        sums = hasSums ? SumsContent(driveSize: size, Self.algorithm) : nil
        // Of several blocks, which are read in several steps beside a guest.
        pieceSize = hasSums && chance.oneIn(2) ? 256 << 10 : 65536
        initially = (0..<units).map { values[$0] ?? backing?[$0] ?? 0 }
        state = Mutex(
            State(
                truth: Array(repeating: nil, count: units), isNeeded: Array(repeating: nil, count: clusters)))
    }

    private static func log(_ seed: UInt64) -> (StagingLog.Shape, LogContent)? {
        var chance = Chance(seed: seed &+ 0x5109)
        guard !chance.oneIn(4) else { return nil }
        let shape = StagingLog.Shape(
            blocksPerSegment: chance.pick([1, 2, 3, 4, 7]), buffers: chance.pick([1, 2, 4, 9]),
            segments: chance.pick([1, 3, 6, 20]))
        return (shape, LogContent(shape))
    }

    var clusterCount: Int { Int(size.dividedRoundingUp(by: clusterSize)) }
    var unitsPerCluster: Int { Int(clusterSize / 512) }

    func units(ofCluster cluster: Int) -> Range<Int> {
        cluster * unitsPerCluster..<min(Int(size / 512), (cluster + 1) * unitsPerCluster)
    }

    func clusters(of units: Range<Int>) -> Range<Int> {
        units.lowerBound / unitsPerCluster..<(units.upperBound - 1) / unitsPerCluster + 1
    }

    func complain(_ text: String) { state.withLock { $0.complaints.append(text) } }

    // MARK: The history

    /// Plays it to its end; says what was wrong.
    func play() -> [String] {
        for life in 0...killTimes.count {
            let isLast = life == killTimes.count
            let agent = LiveAgent(self, life: life)
            let isDone = agent.live(killedAfter: isLast ? nil : killTimes[life])
            if isDone || state.withLock({ !$0.complaints.isEmpty }) { break }
            if isLast {
                complain("it got stuck: \(agent.trouble)")
                break
            }
            state.withLock { $0.wasKilled += 1 }
            var chance = Chance(seed: seed &* 7919 &+ UInt64(life))
            Trace.note("*** kill")
            pieces.kill(&chance)
            settleAfterKill()
        }
        if state.withLock({ $0.complaints.isEmpty }) { judge() }
        // What a kill has left suspended keeps this history in memory, so that no deinit would do it.
        unlink(recordPath)
        return state.withLock { $0.complaints }
    }

    // MARK: Truth

    /// The switch was thrown: what no request of before touches is settled.
    func noteSwitch() {
        Trace.note("=== switch")
        state.withLock { state in
            state.isSwitched = true
            for index in state.requests.indices
            where state.requests[index].end == nil && state.requests[index].start > 0
                && !state.requests[index].isAtRest
            {
                state.requests[index].isBefore = true
            }
        }
        for cluster in 0..<clusterCount { settle(cluster) }
    }

    /// Nothing of before is in flight to the cluster any more: the truth is on the drive.
    func settle(_ cluster: Int) {
        let units = units(ofCluster: cluster)
        let isSettled = state.withLock { state in
            state.truth[units.lowerBound] == nil
                && !state.requests.contains {
                    $0.isBefore && $0.end == nil && clusters(of: $0.units).contains(cluster)
                }
        }
        guard isSettled else { return }
        let values = units.map { drive.value($0) }
        let isNeeded = drive.isAllocated(units)
        state.withLock { state in
            for (unit, value) in zip(units, values) { state.truth[unit] = value }
            state.isNeeded[cluster] = isNeeded
        }
    }

    /// What a kill ends counts as it stands on the drive; sent again, it is a later request.
    private func settleAfterKill() {
        let isSwitched = state.withLock { state in
            for index in state.requests.indices { state.requests[index].isBefore = false }
            return state.isSwitched
        }
        if isSwitched { for cluster in 0..<clusterCount { settle(cluster) } }
    }

    // MARK: Verdicts

    private func judge() {
        let state = state.withLock { $0 }
        let outcome = state.resumeFailure ?? (state.outcome ?? nil)
        for unit in 0..<Int(size / 512) {
            let value = drive.value(unit)
            if !allowed(unit, state).contains(value) {
                return complain(
                    "the drive holds \(value) in unit \(unit), not one of \(allowed(unit, state))")
            }
        }
        if let outcome {
            judge(outcome, state)
        } else if state.isSwitched {
            judgeTarget(state)
        }
    }

    /// Values that a unit may hold: each that no later acknowledged write has replaced. A discard replaces nothing.
    private func allowed(_ unit: Int, _ state: State) -> Set<UInt32> {
        let here = state.requests.filter { $0.units.contains(unit) && $0.start > 0 }
        let firm = here.filter { $0.end != nil && $0.kind != .trim }
        var values = Set(
            here.filter { request in
                request.end.map { end in !firm.contains { $0.start > end } } ?? true
            }.map(\.value))
        if firm.isEmpty { values.insert(initially[unit]) }
        // A discard that did nothing leaves what was there before it.
        for trim in here where trim.kind == .trim {
            let older = here.filter { $0.kind != .trim && $0.start < (trim.end ?? .max) }
            for request in older where !firm.contains(where: { $0.start > (request.end ?? .max) }) {
                values.insert(request.value)
            }
        }
        return values
    }

    private func judge(_ failure: BackupFailure, _ state: State) {
        switch failure {
        case .cancelled:
            if cancelTime == nil { complain("cancelled, though nobody did") }
        case .suspended: complain("suspended, though nobody did")
        case .failed(let failure):
            switch failure.side {
            case .target:
                let isFaulty = failingWrite != nil || losesWriteBack || targetFault != nil
                if !isFaulty || !mayFail(options.onTargetError, failure, state) {
                    complain("failed: \(failure)")
                }
            case .source:
                if !state.hadBad || !mayFail(options.onSourceError, failure, state) {
                    complain("failed: \(failure)")
                }
            case .staging:
                let mayBeLate = options.saveTimeout < .seconds(3600)
                // A job that had failed or was cancelled when the agent was killed has let its guest go.
                let hadFailed = failingWrite != nil || targetFault != nil
                let wasLetGo = state.wasKilled > 0 && (hadFailed || cancelTime != nil)
                if stagingLimit == nil, stagingFullAt == nil, !mayBeLate, !state.hadBad, !state.isFlushing,
                    !wasLetGo, !losesStaged
                {
                    complain("failed: \(failure)")
                }
            }
        }
    }

    /// Whether an error ends the job; one that is ending well cannot be paused.
    private func mayFail(_ policy: ErrorPolicy, _ failure: IOFailure, _ state: State) -> Bool {
        switch policy.action(on: failure.error) {
        case .report: true
        case .ignore: false
        case .stop: options.sync == .none && state.isFinishing
        }
    }

    /// Only what failed for good, and was told, may be missing.
    private func judgeMissing(_ state: State) {
        let unwritable = targetFault.flatMap { fault in
            fault.failuresLeft == nil && options.onTargetError == .ignore ? fault.units : nil
        }
        for block in state.missing {
            let cluster = block * 8 / unitsPerCluster
            let isUnreadable =
                options.ignoresSourceErrors
                && !state.permanentlyBad.isDisjoint(with: block * 8..<block * 8 + 8)
            if !isUnreadable, unwritable.map({ clusters(of: $0).contains(cluster) }) != true {
                return complain("block \(block) is missing, and nothing was wrong with it")
            }
            // A kill may have come before it was told.
            if state.wasKilled == 0, !state.leftOut.contains(block) {
                return complain("block \(block) is missing, and nobody was told")
            }
            if !state.done.contains(cluster) { return complain("block \(block) is missing, but not done") }
        }
    }

    private func judgeTarget(_ state: State) {
        judgeMissing(state)
        if target.hasLost.load(ordering: .relaxed), state.wasKilled == 0 {
            complain("a job has completed whose target had lost data")
        }
        let held = target.kept()
        for cluster in 0..<clusterCount {
            let isDone = state.done.contains(cluster)
            if options.sync == .none {
                if state.touched.contains(cluster), !isDone {
                    return complain("cluster \(cluster), which the guest has overwritten, was not copied")
                }
                if !isDone { continue }
            }
            for unit in units(ofCluster: cluster) {
                if options.sync == .top, state.isNeeded[cluster] == false {
                    if held[unit] != nil {
                        return complain("cluster \(cluster) was copied, which the top image does not hold")
                    }
                    continue
                }
                let isMissing = state.missing.contains(unit / 8)
                let value = held[unit] ?? (options.targetReadsAsZero ? 0 : nil)
                if isMissing { continue }
                if value != state.truth[unit] {
                    return complain(
                        "unit \(unit) of the target is \(value.map(String.init) ?? "never written") instead of "
                            + "\(state.truth[unit].map(String.init) ?? "?")")
                }
            }
        }
        do throws(BlockError) { try judgeSums(state) } catch { complain("no digest: \(error)") }
        if state.isBroken { complain("a job whose point in time is lost has completed") }
    }
}
