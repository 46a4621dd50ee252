import BlockIO
import Testing

@testable import BackupAgent

@Suite("The engines of drives")
struct EnginePoolTests {
    @Test("an engine is shared once it serves a second drive, and not by what needs it for a while")
    func sharing() async throws {
        // The other kind has no thread that drives could hold up.
        guard EngineKind.preferred() == .ring else { return }
        let pool = EnginePool(kind: .ring, maximum: 2)
        func ring(forDrive isDrive: Bool = true) throws -> RingEngine {
            let engine = try #require(try pool.engine(forDrive: isDrive) as? RingEngine)
            if isDrive { pool.serve(on: engine) }
            return engine
        }
        let passing = try ring(forDrive: false)
        let drives = [try ring(), try ring()]
        #expect(drives[0] === passing && drives[0] !== drives[1])
        _ = try ring(forDrive: false)
        // Drives that cannot be opened, and one that is closed, change nothing for those that are there.
        for _ in 0..<5 { pool.release(try pool.engine()) }
        pool.release(drives[1])
        #expect(try ring() === drives[1])
        #expect(drives.allSatisfy { !$0.isShared })
        #expect(try ring() === drives[0])
        #expect(drives.map(\.isShared) == [true, false])
        let reading = try pool.readingEngine()
        #expect(drives.allSatisfy { $0 !== reading as? RingEngine }, "a hanging backup holds a guest up")
        #expect(try reading === pool.readingEngine())
        await pool.shutDown()
    }
}
