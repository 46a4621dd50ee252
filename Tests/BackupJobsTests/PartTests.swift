internal import BlockIO
internal import Glibc
internal import TestKit
internal import Testing

@testable internal import BackupJobs

@Suite struct RateLimiterTests {
    @Test(
        "over seconds the speed is kept to within a few per cent",
        arguments: [70_000, 1 << 20, 300 << 20] as [Int64])
    func average(speed: Int64) {
        var chance = Chance(seed: 7)
        var limiter = RateLimiter(bytesPerSecond: speed)
        var now = Duration.zero
        var bytes: UInt64 = 0
        while now < .seconds(60) {
            // Timers are late, by different times.
            now += limiter.delay(now: now) + .microseconds(chance.below(3000))
            guard limiter.delay(now: now) == .zero else { continue }
            let chunk = limiter.chunkSize(unit: 65536, most: 1 << 20)
            limiter.spend(chunk, now: now)
            bytes += chunk
        }
        let average = Double(bytes) / 60
        #expect(abs(average / Double(speed) - 1) < 0.04)
    }

    @Test("a limiter that was left alone does not make up for it")
    func noBurst() {
        var limiter = RateLimiter(bytesPerSecond: 1 << 20)
        limiter.spend(65536, now: .seconds(1))
        limiter.spend(1 << 20, now: .seconds(100))
        #expect(limiter.delay(now: .seconds(100)) == .milliseconds(900))
    }

    @Test("chunks shrink with the speed down to one cluster, and without limit they are whole")
    func chunks() {
        #expect(RateLimiter(bytesPerSecond: 0).chunkSize(unit: 65536, most: 1 << 20) == 1 << 20)
        #expect(RateLimiter(bytesPerSecond: .max).chunkSize(unit: 65536, most: 1 << 20) == 1 << 20)
        #expect(RateLimiter(bytesPerSecond: 1 << 20).chunkSize(unit: 65536, most: 1 << 20) == 131_072)
        #expect(RateLimiter(bytesPerSecond: 1).chunkSize(unit: 65536, most: 1 << 20) == 65536)
        #expect(RateLimiter(bytesPerSecond: 1).chunkSize(unit: 2 << 20, most: 2 << 20) == 2 << 20)
    }

    @Test("what remains to be waited follows a change of speed at once")
    func change() {
        var limiter = RateLimiter(bytesPerSecond: 1)
        limiter.spend(65536, now: .zero)
        #expect(limiter.delay(now: .zero) > .seconds(60_000))
        limiter.setSpeed(65536, now: .zero)
        #expect(limiter.delay(now: .zero) <= .seconds(1))
        limiter.setSpeed(0, now: .zero)
        #expect(limiter.delay(now: .zero) == .zero)
        limiter.setSpeed(1, now: .seconds(1))
        #expect(limiter.delay(now: .seconds(1)) == .zero)
    }
}

@Suite struct StoredBitsTests {
    @Test("a row of bits is a set of numbers, over pages and with parts that have no space")
    func random() throws {
        let seed = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(seed)")
        var chance = Chance(seed: seed)
        let count = 3 * BitSection.bitsPerPage + 1000
        let engine = SimEngine(seed: 0)
        engine.adoptThread()
        let record = Scratch(size: UInt64(count) << 16, clusterSize: 65536, engine: engine).record
        var model = Array(repeating: false, count: count)
        func some() -> Range<Int> {
            // Near the ends of pages and words, mostly.
            let near = chance.pick([0, BitSection.bitsPerPage, 2 * BitSection.bitsPerPage, count])
            let place = chance.oneIn(2) ? chance.below(count) : near - 200 + chance.below(400)
            let start = max(0, min(count - 1, place))
            return start..<min(count, start + chance.pick([1, 3, 64, 65, 128, 700, 40_000]))
        }
        for step in 0..<600 {
            let bits = some()
            if chance.oneIn(3) {
                record.bits.frozen.clear(bits)
                for bit in bits { model[bit] = false }
            } else if !chance.oneIn(3) {
                try record.bits.frozen.reserve(bits)
                record.bits.frozen.set(bits)
                for bit in bits { model[bit] = true }
            }
            let asked = some()
            let frozen = record.bits.frozen
            #expect(frozen.first(in: asked) == asked.first { model[$0] }, "seed \(seed), step \(step)")
            #expect(
                frozen.first(in: asked, where: false) == asked.first { !model[$0] },
                "seed \(seed), step \(step)")
        }
    }
}

@Suite struct ClusterMapTests {
    private let engine = SimEngine(seed: 0)

    @Test("every cluster is exactly one of to copy, in flight and done")
    func model() {
        engine.adoptThread()
        let seed = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(seed)")
        var chance = Chance(seed: seed)
        for _ in 0..<20 {
            let clusters = chance.oneIn(2) ? 1 + chance.below(200) : 32_700 + chance.below(40_000)
            let size = UInt64(clusters) << 16 - chance.below(65536 as UInt64)
            let record = Scratch(size: size, clusterSize: 65536, engine: engine).record
            var map = ClusterMap(record)
            var model = [ClusterMap.Standing](repeating: .toCopy, count: clusters)
            var flights: [Range<Int>] = []
            var wrong: [Int] = []
            for _ in 0..<200 {
                let first = chance.below(clusters)
                let most = chance.oneIn(10) ? clusters : 100
                let picked = first..<min(clusters, first + 1 + chance.below(most))
                if chance.oneIn(3), let flight = flights.popLast() {
                    let isDone = chance.oneIn(2)
                    if isDone { map.finish(flight) } else { map.giveUp(flight) }
                    for cluster in flight { model[cluster] = isDone ? .done : .toCopy }
                } else if picked.allSatisfy({ model[$0] == .toCopy }) {
                    try? map.begin(picked)
                    flights.append(picked)
                    for cluster in picked { model[cluster] = .inFlight }
                }
                for _ in 0..<20 {
                    let cluster = chance.below(clusters)
                    if map.standing(of: cluster) != model[cluster] { wrong.append(cluster) }
                    let (standing, end) = map.run(in: cluster..<clusters)
                    let isRun = standing == .inFlight || model[cluster..<end].allSatisfy { $0 == standing }
                    if standing != model[cluster] || !isRun { wrong.append(cluster) }
                }
            }
            #expect(wrong == [])
            #expect(map.firstToCopy()?.lowerBound == model.firstIndex(of: .toCopy))
        }
    }

    @Test("a map of 15 TiB is passed over at once")
    func large() throws {
        engine.adoptThread()
        let size: UInt64 = 15 << 40
        let count = Int(size >> 16)
        var map = ClusterMap(Scratch(size: size, clusterSize: 65536, engine: engine).record)
        let most = 0..<count - 1
        try map.begin(most)
        map.finish(most)
        #expect(map.firstToCopy() == count - 1..<count)
        #expect(map.run(in: 0..<count).end == count - 1)
    }
}

/// The bits of a job's record, also as the next agent finds them.
@Suite struct BitSectionTests {
    private let engine = SimEngine(seed: 0)
    private static let page = BitSection.bitsPerPage

    @Test("bits are what was set, page by page and over pages, and are so after a restart")
    func model() throws {
        engine.adoptThread()
        let seed = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(seed)")
        var chance = Chance(seed: seed)
        let scratch = try TemporaryDirectory()
        for round in 0..<8 {
            let count = 1 + chance.below(5 * Self.page)
            let path = scratch.file("\(round)")
            var record = try JobRecord.create(
                at: path, driveSize: UInt64(count) << 16, clusterSize: 65536, engine: engine)
            var model = [Bool](repeating: false, count: count)
            for step in 0..<60 {
                // Holes are long, and begin anywhere; some end where a page does.
                var first = chance.below(count)
                if chance.oneIn(2) { first = first / Self.page * Self.page }
                if !model[first] {
                    let end = model[first...].firstIndex(of: true) ?? count
                    let length = chance.oneIn(2) ? end - first : 1 + chance.below(end - first)
                    try record.bits.done.reserve(first..<first + length)
                    record.bits.done.set(first..<first + length)
                    for bit in first..<first + length { model[bit] = true }
                }
                if step % 10 == 9 { record = try JobRecord.open(path, engine: engine) }
                for _ in 0..<20 {
                    let bit = chance.below(count)
                    #expect(record.bits.done.isSet(bit) == model[bit])
                    let wanted = chance.oneIn(2)
                    #expect(
                        record.bits.done.first(in: bit..<count, where: wanted)
                            == model[bit...].firstIndex(of: wanted))
                }
            }
            let runs = record.bits.done.runs(in: 0..<count)
            #expect(runs.reduce(0) { $0 + $1.count } == model.count { $0 })
            #expect(runs.allSatisfy { model[$0].allSatisfy { $0 } })
        }
    }

    @Test("what is known of the holes of 15 TiB takes little memory, in an agent that goes on as well")
    func holes() throws {
        engine.adoptThread()
        let size: UInt64 = 15 << 40
        let count = Int(size >> 16)
        let scratch = try TemporaryDirectory()
        let path = scratch.file("record")
        let record = try JobRecord.create(at: path, driveSize: size, clusterSize: 65536, engine: engine)
        // A GiB of data in pieces of 8 MiB, and holes between.
        var map = ClusterMap(record)
        for piece in 0..<128 {
            let start = count / 128 * piece
            let end = piece == 127 ? count : start + count / 128
            for clusters in [start..<start + 128, start + 128..<end] {
                try map.begin(clusters)
                map.finish(clusters)
            }
        }
        #expect(map.firstToCopy() == nil)
        var status = stat()
        #expect(stat(path, &status) == 0)
        #expect(status.st_blocks * 512 < 2 << 20, "\(status.st_blocks * 512) bytes")
        let reopened = try JobRecord.open(path, engine: engine)
        #expect(ClusterMap(reopened).firstToCopy() == nil)
    }
}

@Suite struct JobControlTests {
    @Test("nobody waits for the quiescence of a job that is not paused, is cancelled, or has ended")
    func noQuiescence() async {
        let control = JobControl()
        #expect(await !control.quiescent())
        control.pause()
        #expect(await control.quiescent())
        control.cancel()
        #expect(await !control.quiescent())
    }

    @Test("a waiter learns of quiescence, of a resume, and of its own cancellation")
    func waiters() async {
        let control = JobControl()
        #expect(control.startChunk())
        control.pause()
        #expect(!control.startChunk())
        async let first = control.quiescent()
        control.chunkEnded(copied: 0)
        #expect(await first)
        control.resume()
        #expect(control.startChunk())
        control.pause()
        async let second = control.quiescent()
        control.resume()
        #expect(await !second)
        control.pause()
        let third = Task { await control.quiescent() }
        third.cancel()
        #expect(await !third.value)
    }
}

@Suite struct SignalTests {
    @Test("a signal that is raised while nobody waits wakes the next who does, once")
    func remembered() {
        let engine = SimEngine(seed: 1)
        let signal = Signal()
        let returns = Flag()
        signal.raise()
        signal.raise()
        let isDone = engine.drive {
            await signal.raised()
            returns.set()
            await signal.raised()
        }
        #expect(returns.isSet)
        #expect(!isDone)
        signal.raise()
    }
}

@Suite struct GuestPaceTests {
    /// What the pace allows after steps between which a guest did this.
    private func allowance(
        steps: Int, requests: UInt64, changes: UInt64, perTurn: UInt64, inLongPieces: Bool = false,
        waitsForDisk: Bool = false, then quiet: Int = 0
    ) -> GuestPace.Allowance {
        var pace = GuestPace()
        var activity = LiveDrive.Activity()
        pace.note(activity, perTurn: 0, inLongPieces: false, waitsForDisk: false)
        for _ in 0..<steps {
            activity.requests += requests
            activity.changes += changes
            pace.note(activity, perTurn: perTurn, inLongPieces: inLongPieces, waitsForDisk: waitsForDisk)
        }
        for _ in 0..<quiet {
            pace.note(activity, perTurn: perTurn, inLongPieces: inLongPieces, waitsForDisk: waitsForDisk)
        }
        return pace.allowance
    }

    @Test("the copy takes what the guest leaves it")
    func paces() {
        let long = GuestPace.patience
        #expect(allowance(steps: 0, requests: 0, changes: 0, perTurn: 0) == .idle)
        #expect(allowance(steps: 1, requests: 1, changes: 0, perTurn: 1) == .few)
        // Slow steps, with many requests of one after the other between them.
        #expect(allowance(steps: long, requests: 100, changes: 0, perTurn: 1) == .few)
        #expect(allowance(steps: long, requests: 100, changes: 0, perTurn: GuestPace.many - 1) == .few)
        #expect(allowance(steps: long, requests: 100, changes: 0, perTurn: GuestPace.many) == .many)
        #expect(allowance(steps: long, requests: 100, changes: 66, perTurn: 16) == .many)
        #expect(allowance(steps: long, requests: 100, changes: 67, perTurn: 16) == .manyChanges)
        #expect(allowance(steps: long, requests: 100, changes: 100, perTurn: GuestPace.plenty - 1) == .many)
        #expect(
            allowance(steps: long, requests: 100, changes: 100, perTurn: GuestPace.plenty) == .manyChanges)
        #expect(allowance(steps: 1, requests: 100, changes: 100, perTurn: 16, then: long - 1) == .manyChanges)
        #expect(allowance(steps: 1, requests: 100, changes: 100, perTurn: 16, then: long) == .idle)
        #expect(
            allowance(steps: long, requests: 1, changes: 1, perTurn: 1, inLongPieces: true) == .longWrites)
        for changes: UInt64 in [0, 100] {
            #expect(
                allowance(steps: long, requests: 100, changes: changes, perTurn: 16, waitsForDisk: true)
                    == .manyOnDisk)
        }
        #expect(allowance(steps: long, requests: 1, changes: 1, perTurn: 1, waitsForDisk: true) == .fewOnDisk)
        // What was written long ago says nothing of a guest that reads.
        #expect(allowance(steps: 2 * long, requests: 1, changes: 0, perTurn: 1, inLongPieces: true) == .few)
    }

    @Test("what a guest mostly does is what most of its last requests were", arguments: [0, 1, 3])
    func mostly(quietSteps: Int) {
        var pace = GuestPace()
        var activity = LiveDrive.Activity()
        pace.note(activity, perTurn: 0, inLongPieces: false, waitsForDisk: false)
        for (isChange, expected) in [
            (false, GuestPace.Allowance.many), (true, .manyChanges), (false, .many),
            (true, .manyChanges),
        ] {
            for _ in 0..<GuestPace.memory * 3 / 16 {
                activity.requests += 16
                activity.changes += isChange ? 16 : 1
                pace.note(activity, perTurn: 16, inLongPieces: false, waitsForDisk: false)
                // Steps in which nothing has come say nothing.
                for _ in 0..<quietSteps {
                    pace.note(activity, perTurn: 16, inLongPieces: false, waitsForDisk: false)
                }
            }
            #expect(pace.allowance == expected)
        }
    }

    @Test("the more a guest can give the longer the copy's steps are")
    func steps() {
        let lengths = [
            GuestPace.Allowance.few, .many, .manyChanges, .idle,
        ].map(\.stepLength)
        #expect(lengths == lengths.sorted() && Set(lengths).count == lengths.count)
    }
}
