internal import BackupJobs
internal import BlockIO
internal import Synchronization
internal import TestKit
internal import Testing

/// Single properties of a run, in virtual time.
@Suite struct RunTests {
    @Test("an empty drive is copied at once")
    func emptyDrive() {
        let run = SimRun([])
        #expect(run.play().failure == nil)
        #expect(run.control.progress == JobControl.Progress(current: 0, total: 0))
        #expect(run.target.requests == 0)
    }

    @Test(
        "the tail of a drive is copied to its last byte", arguments: [1, 511, 1536, 65535, 65537, 3_147_264])
    func tail(size: UInt64) {
        let run = SimRun([.data(0..<size)])
        #expect(run.play().failure == nil)
        #expect(run.target.taken.last?.end == size)
        #expect(run.control.progress == JobControl.Progress(current: size, total: size))
    }

    @Test("a drive of 15 TiB with little in it is copied in few steps")
    func sparse() {
        let size: UInt64 = 15 << 40
        let run = SimRun(
            [
                .hole(0..<1 << 40), .data(1 << 40..<1 << 40 + 65536), .hole(1 << 40 + 65536..<size - 512),
                .data(size - 512..<size),
            ], readsAsZero: true)
        #expect(run.play().failure == nil)
        #expect(run.target.requests == 2)
        #expect(run.drive.queries < 500)
        #expect(run.control.progress == JobControl.Progress(current: size, total: size))
    }

    @Test(
        "a drive that is cloned is neither read nor asked for its holes, whatever its size",
        arguments: [15, 40])
    func clone(shift: UInt64) {
        let size: UInt64 = 15 << shift - 512
        let run = SimRun([.data(0..<size / 1024 * 512), .hole(size / 1024 * 512..<size)], clones: true)
        #expect(run.play().failure == nil)
        #expect(run.drive.reads == 0 && run.drive.queries == 0)
        #expect(run.target.taken.reduce(0) { $0 + $1.length } == size)
        #expect(run.target.requests <= 40)
        #expect(run.job.isCloned)
        #expect(run.control.progress == JobControl.Progress(current: size, total: size))
    }

    @Test("an answer about extents that comes when its range is done is not taken for that of the next range")
    func lateAnswer() {
        for seed: UInt64 in 1...200 {
            // Two ranges of extents, and in each a cluster that is not done when the clone ends.
            let run = SimRun([.data(0..<200 << 20)], clones: true, seed: seed)
            let result = run.play { run in
                let buffer = IOBuffer(count: 4096)
                for place: UInt64 in [1 << 20, 150 << 20] {
                    let range = ByteRange(offset: place, length: 4096)
                    // Until the old content is saved; the simulated drive itself refuses every write.
                    while !run.job.isCloned, run.control.progress.current == 0 {
                        try? await run.job.drive.write(range, from: buffer.slice)  // refused after the save
                        if run.isSaved(range) { break }
                        await run.engine.pass(.microseconds(10))
                    }
                }
            }
            #expect(result.failure == nil, "seed \(seed)")
            #expect(run.control.progress.current == 200 << 20, "seed \(seed)")
        }
    }

    @Test("a guest that comes, and falls quiet in the midst of a piece, changes nothing of what is copied")
    func guestFallsQuiet() {
        for seed: UInt64 in 1...60 {
            let size: UInt64 = 24 << 20
            let run = SimRun([.data(0..<size)], seed: seed)
            let result = run.play { run in
                let buffer = IOBuffer(count: 4096)
                var random = SeededGenerator(seed)
                while run.control.progress.current < size, run.engine.now < .seconds(600) {
                    for _ in 0..<Int.random(in: 1...4, using: &random) {
                        // The simulated drive refuses no read.
                        try? await run.job.drive.read(ByteRange(offset: 0, length: 4096), into: buffer.slice)
                    }
                    await run.engine.pass(.microseconds(Int.random(in: 0..<20_000, using: &random)))
                }
            }
            #expect(result.failure == nil, "seed \(seed)")
            #expect(run.control.progress.current == size, "seed \(seed)")
            let expected = IOBuffer(count: Int(size))
            run.drive.fill(run.drive.range, expected.bytes)
            let isRight = expected.bytes.isSame(as: run.target.content.bytes)
            #expect(isRight, "seed \(seed)")
        }
    }

    @Test("a clone that hangs holds up no cancel")
    func hungClone() {
        let run = SimRun([.data(0..<32 << 20)], hanging: 0, clones: true)
        let result = run.play { run in
            await run.engine.pass(.seconds(5))
            run.control.cancel()
        }
        #expect(result.failure == .cancelled)
        #expect(run.engine.now < .seconds(6))
        #expect(!run.job.isCloned)
        run.target.release()
        let isDone = run.engine.drive { [job = run.job] in await job.leftBehindEnded() }
        #expect(isDone)
        #expect(run.target.inFlight == 0)
    }

    @Test("a new target is not asked to hold zeroes, known or found; another is, in large pieces")
    func zeroes() {
        let stretches: [SimDrive.Stretch] = [
            .data(0..<65536), .hole(65536..<20 << 20), .zeroData(20 << 20..<21 << 20),
            .data(21 << 20..<22 << 20),
        ]
        let new = SimRun(stretches, readsAsZero: true)
        #expect(new.play().failure == nil)
        #expect(new.target.zeroRequests == 0)
        #expect(new.target.taken.reduce(0) { $0 + $1.length } == 65536 + 1 << 20)
        let old = SimRun(stretches, readsAsZero: false)
        #expect(old.play().failure == nil)
        #expect(old.target.zeroRequests == 2)
        #expect(old.target.taken.reduce(0) { $0 + $1.length } == 22 << 20)
    }

    @Test("zeroes in the top layer mask what the target's backing file has there")
    func maskedZeroes() {
        var zeroes = SimDrive.Stretch.hole(65536..<131_072)
        zeroes.isAllocated = true
        var hole = SimDrive.Stretch.hole(131_072..<196_608)
        hole.isAllocated = false
        let run = SimRun([.data(0..<65536), zeroes, hole], sync: .top)
        #expect(run.play().failure == nil)
        #expect(run.target.taken == [ByteRange(0..<65536), ByteRange(65536..<131_072)])
        #expect(run.target.zeroRequests == 1)
        #expect(run.target.content.bytes[65536] == 0)
        #expect(run.target.content.bytes[131_072] == 0xee)
        #expect(run.control.progress == JobControl.Progress(current: 131_072, total: 131_072))
    }

    @Test("several chunks are in flight at once, and large ones are joined across extents")
    func depth() {
        let pieces = (0..<64).map { SimDrive.Stretch.data($0 << 18..<($0 + 1) << 18) }
        let run = SimRun(pieces)
        #expect(run.play().failure == nil)
        #expect(run.target.requests == 16)
        #expect(run.target.largest == 1 << 20)
        // How many there are at once does not depend on how long each takes when none ends.
        let slow = SimRun(pieces, hanging: 0)
        let result = slow.play { run in
            await run.engine.pass(.seconds(5))
            run.control.cancel()
        }
        #expect(result.failure == .cancelled)
        #expect(slow.target.depth > 4)
        slow.target.release()
        let isDone = slow.engine.drive { [job = slow.job] in await job.leftBehindEnded() }
        #expect(isDone)
    }

    @Test("8 MiB at 1 MiB a second take six to nine seconds, and no second passes without progress")
    func speed() {
        let run = SimRun([.data(0..<8 << 20)], speed: 1 << 20)
        let steps = Mutex<[Duration]>([])
        let last = Mutex<UInt64>(0)
        run.engine.observe { [engine = run.engine, control = run.control] in
            let current = control.progress.current
            last.withLock { last in
                if current > last { steps.withLock { $0.append(engine.now) } }
                last = current
            }
        }
        #expect(run.play().failure == nil)
        #expect((.seconds(6)..<Duration.seconds(9)).contains(run.engine.now))
        let times = steps.withLock { $0 }
        #expect(zip(times, times.dropFirst()).allSatisfy { $1 - $0 < .milliseconds(400) })
    }

    @Test("holes cost nothing of the speed")
    func holesAreFree() {
        let run = SimRun(
            [.hole(0..<100 << 20), .data(100 << 20..<101 << 20)], readsAsZero: true, speed: 1 << 20)
        #expect(run.play().failure == nil)
        #expect(run.engine.now < .seconds(2))
    }

    @Test("a higher speed wakes a job that sleeps")
    func fasterNow() {
        let run = SimRun([.data(0..<8 << 20)], speed: 1)
        let result = run.play { run in
            await run.engine.pass(.seconds(5))
            run.control.setSpeed(0)
        }
        #expect(result.failure == nil)
        #expect(run.engine.now < .seconds(6))
    }

    @Test("a cancel ends a run whose target hangs; its buffers come back when the target does")
    func hungTarget() {
        let run = SimRun([.data(0..<32 << 20)], hanging: 3)
        let result = run.play { run in
            await run.engine.pass(.seconds(5))
            run.control.cancel()
        }
        #expect(result.failure == .cancelled)
        #expect(run.engine.now < .seconds(6))
        #expect(run.target.inFlight > 0)
        // All of the pool can be lent again once what was left behind has returned.
        let isWhole = Flag()
        run.target.release()
        let isDone = run.engine.drive { [pool = run.pool, job = run.job] in
            await job.leftBehindEnded()
            while pool.takeIfAvailable() != nil {}
            isWhole.set()
        }
        #expect(isDone && isWhole.isSet)
        #expect(run.target.inFlight == 0)
        #expect(run.target.violations == [])
    }

    @Test("cancelling the task that runs a job cancels the job, paused or not", arguments: [false, true])
    func cancelledTask(isPaused: Bool) {
        let run = SimRun([.data(0..<32 << 20)], speed: 1 << 20)
        let outcome = Mutex<BackupFailure?>(nil)
        let isDone = run.engine.drive { [job = run.job, engine = run.engine] in
            let task = Task(executorPreference: engine) { () async -> BackupFailure? in
                do throws(BackupFailure) { try await job.run() } catch { return error }
                return nil
            }
            await engine.pass(.seconds(1))
            if isPaused { job.control.pause() }
            await engine.pass(.seconds(1))
            task.cancel()
            let failure = await task.value
            outcome.withLock { $0 = failure }
        }
        #expect(isDone)
        #expect(outcome.withLock { $0 } == .cancelled)
        #expect(run.engine.now < .seconds(3))
    }

    @Test("a drive too large to keep track of is refused")
    func tooLarge() {
        let error = #expect(throws: BlockError.self) {
            try JobRecord.create(
                at: "/nonexistent/record", driveSize: 1 << 60, clusterSize: 65536, engine: SimEngine(seed: 0))
        }
        #expect(error?.code == .unsupported)
    }
}
