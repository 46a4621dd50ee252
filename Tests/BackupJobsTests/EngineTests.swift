internal import BackupJobs
internal import BlockIO
internal import Testing

/// The same on real threads, where races would show.
@Suite struct EngineTests {
    @Test("jobs on engines of their own share a pool while they are steered from elsewhere")
    func threads() async throws {
        let pool = BufferPool(capacity: 8 << 16, bufferSize: 1 << 16)
        await withTaskGroup { group in
            for number in 0..<4 as Range<UInt64> {
                group.addTask { await Self.runOne(number, pool) }
            }
        }
    }

    private static func runOne(_ number: UInt64, _ pool: BufferPool) async {
        let engine = ThreadsEngine(name: "job \(number)", workers: 1)
        var chance = Chance(seed: number)
        let drive = SimDrive.random(
            &chance, clusters: 400, hasBacking: false, engine: engine, faults: SimDrive.Faults())
        let target = SimTarget(size: drive.size, clusterSize: 65536, initially: 0xee, sim: nil)
        let job = BackupJob(
            source: drive, target: target,
            options: BackupJob.Options(sync: .full, speedBytesPerSecond: 64 << 20),
            buffers: pool)
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
