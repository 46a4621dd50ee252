internal import BlockIO
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

@Suite struct ClusterMapTests {
    @Test("every cluster is exactly one of to copy, in flight and done")
    func model() {
        let seed = Chance.seed()
        print("DRIVE_BACKUP_SEED=\(seed)")
        var chance = Chance(seed: seed)
        for _ in 0..<20 {
            let clusters = chance.oneIn(2) ? 1 + chance.below(200) : 32_700 + chance.below(40_000)
            let size = UInt64(clusters) << 16 - chance.below(65536 as UInt64)
            var map = ClusterMap(size: size, clusterSize: 65536)
            var model = [ClusterMap.Standing](repeating: .toCopy, count: clusters)
            var flights: [Range<Int>] = []
            var wrong: [UInt64] = []
            for _ in 0..<200 {
                let first = chance.below(clusters)
                let most = chance.oneIn(10) ? clusters : 100
                let picked = first..<min(clusters, first + 1 + chance.below(most))
                let range = ByteRange(
                    UInt64(picked.lowerBound) << 16..<min(size, UInt64(picked.upperBound) << 16))
                if chance.oneIn(3), let flight = flights.popLast() {
                    let range = ByteRange(
                        UInt64(flight.lowerBound) << 16..<min(size, UInt64(flight.upperBound) << 16))
                    let isDone = chance.oneIn(2)
                    if isDone { map.finish(range) } else { map.giveUp(range) }
                    for cluster in flight { model[cluster] = isDone ? .done : .toCopy }
                } else if picked.allSatisfy({ model[$0] == .toCopy }) {
                    let isPassed = chance.oneIn(2)
                    if isPassed { map.pass(range) } else { map.begin(range) }
                    if !isPassed { flights.append(picked) }
                    for cluster in picked { model[cluster] = isPassed ? .done : .inFlight }
                }
                for _ in 0..<20 {
                    let cluster = chance.below(clusters)
                    let offset = min(size - 1, UInt64(cluster) << 16 + chance.below(65536 as UInt64))
                    if map.standing(at: offset) != model[Int(offset >> 16)] { wrong.append(offset) }
                }
            }
            #expect(wrong == [])
            #expect(map.doneCount == model.count { $0 == .done })
            #expect(map.isComplete == model.allSatisfy { $0 == .done })
        }
    }

    @Test("a map of 15 TiB is passed over at once")
    func large() {
        let size: UInt64 = 15 << 40
        var map = ClusterMap(size: size, clusterSize: 65536)
        map.pass(ByteRange(0..<size - 65536))
        #expect(!map.isComplete)
        map.begin(ByteRange(size - 65536..<size))
        map.finish(ByteRange(size - 65536..<size))
        #expect(map.isComplete)
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
