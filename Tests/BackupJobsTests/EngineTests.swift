internal import BackupJobs
internal import BlockIO
internal import Testing

/// The same on real threads, where races would show.
@Suite struct EngineTests {
    @Test(
        "jobs on engines of their own share a pool while they are steered from elsewhere",
        arguments: EngineKind.allCases)
    func threads(kind: EngineKind) async throws {
        // Where io_uring is refused, there is only one kind to try.
        guard kind == .threads || EngineKind.preferred() == .ring else { return }
        let pool = BufferPool(capacity: 8 << 16, bufferSize: 1 << 16)
        try await withThrowingTaskGroup { group in
            for number in 0..<4 as Range<UInt64> {
                group.addTask { try await Self.runOne(number, pool, kind) }
            }
            try await group.waitForAll()
        }
    }

    private static func runOne(_ number: UInt64, _ pool: BufferPool, _ kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "job \(number)")
        var chance = Chance(seed: number)
        let drive = SimDrive.random(
            &chance, clusters: 400, hasBacking: false, engine: engine, faults: SimDrive.Faults())
        let target = SimTarget(size: drive.size, clusterSize: 65536, initially: 0xee, sim: nil)
        let scratch = Scratch(drive, target: target)
        let job = BackupJob(
            drive: LiveDrive(drive), target: target,
            options: BackupJob.Options(sync: .full, speedBytesPerSecond: 64 << 20),
            record: scratch.record, staging: scratch.staging, buffers: pool)
        let control = job.control
        async let steering: Void = {
            for round in 0..<200 {
                control.pause()
                _ = await control.quiescent()
                control.setSpeed(round % 3 == 0 ? 0 : 100 << 20)
                control.setDepth(1 + round % 16)
                control.resume()
                await Task.yield()
            }
            control.setSpeed(0)
        }()
        await #expect(throws: Never.self) { try await job.run() }
        await steering
        let expected = IOBuffer(count: Int(drive.size))
        drive.fill(drive.range, expected.bytes)
        #expect(expected.bytes.isSame(as: target.content.bytes))
        #expect(target.violations == [])
        #expect(control.progress == JobControl.Progress(current: drive.size, total: drive.size))
        await engine.shutDown()
    }
}
