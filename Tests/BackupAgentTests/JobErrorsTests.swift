import BlockIO
import TestKit
import Testing

@testable import BackupAgent

@Suite("The errors of a job")
struct JobErrorsTests {
    private func error(
        _ offset: UInt64, _ side: JobIOError.Side = .source, errno: Int32 = 5,
        action: JobIOError.Action = .ignore
    ) -> JobIOError {
        JobIOError(
            side: side, operation: side == .source ? .read : .write,
            range: ByteRange(offset: offset, length: 4096), errno: errno, message: "at \(offset)",
            action: action)
    }

    @Test("the first of a kind is told at once, those that follow soon are merged into one that spans them")
    func merging() {
        var errors = JobErrors()
        #expect(errors.note(error(65536), now: 0) == [error(65536)])
        #expect(errors.note(error(8192), now: 1) == [])
        #expect(errors.note(error(0), now: 2) == [])
        #expect(errors.note(error(0, .target), now: 3) == [error(0, .target)], "another kind")
        #expect(errors.note(error(40960), now: 4) == [])
        #expect(errors.due(now: JobErrors.interval - 1) == [])
        var merged = error(8192)
        merged.range = ByteRange(0..<45056)
        merged.count = 3
        merged.message = "Failures between the offsets 0 and 45056, the first: at 8192"
        #expect(errors.last == [error(65536), error(0, .target), merged], "what waits is known already")
        #expect(errors.due(now: JobErrors.interval) == [merged])
        #expect(errors.due(now: 10 * JobErrors.interval) == [])
        #expect(errors.count == 5)
    }

    @Test("errors at one place keep their sentence when they are merged")
    func onePlace() {
        var errors = JobErrors()
        _ = errors.note(error(0), now: 0)
        for now in 1...2 { _ = errors.note(error(8192), now: Int64(now)) }
        var merged = error(8192)
        merged.count = 2
        #expect(errors.takePending(now: 3) == [merged])
    }

    @Test("the next agent counts on, and knows the last ones")
    func keptOverRestart() {
        var errors = JobErrors()
        for offset in 0..<40 { _ = errors.noteLast(error(UInt64(offset) * 8192), now: Int64(offset)) }
        _ = errors.note(error(0), now: 41)
        var next = JobErrors(count: errors.count, last: errors.last)
        #expect(next.count == 41 && next.last == errors.last && next.last.count == JobErrors.bound)
        #expect(next.takePending(now: 50) == [])
        #expect(next.note(error(4096), now: 51) == [error(4096)])
        #expect(next.count == 42 && next.last == errors.last.dropFirst() + [error(4096)])
    }

    @Test("what ends the job is told at once, and what waited before it")
    func ending() {
        var errors = JobErrors()
        _ = errors.note(error(0), now: 0)
        _ = errors.note(error(4096), now: 1)
        let last = error(8192, action: .report)
        #expect(errors.noteLast(last, now: 2) == [error(4096), last])
        #expect(errors.noteLast(last, now: 3) == [last], "however soon")
        #expect(errors.takePending(now: 4) == [] && errors.count == 4)
    }

    @Test("whatever the order and the time, no error is lost and no kind is told more than twice a second")
    func random() {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        for _ in 0..<200 {
            var errors = JobErrors()
            var (now, noted): (Int64, UInt64) = (0, 0)
            var told: [JobIOError] = []
            var times: [[Int32]: Int64] = [:]
            for _ in 0..<500 {
                now += Int64.random(in: 0..<JobErrors.interval / 4, using: &random)
                var new: [JobIOError] = []
                if random.oneIn(3) {
                    new = errors.due(now: now)
                } else {
                    let action: JobIOError.Action = random.oneIn(2) ? .ignore : .stop
                    let one = error(
                        4096 * .random(in: 0..<1000, using: &random), random.oneIn(2) ? .source : .target,
                        errno: random.oneIn(2) ? 5 : 28, action: action)
                    noted += 1
                    new = errors.note(one, now: now)
                }
                for error in new {
                    let kind = [error.side.rawValue, error.errno, error.action.rawValue]
                    if let last = times[kind] {
                        #expect(now - last >= JobErrors.interval, "seed \(seed)")
                    }
                    times[kind] = now
                }
                told += new
            }
            told += errors.takePending(now: now)
            #expect(
                told.reduce(0) { $0 + UInt64($1.count) } == noted && errors.count == noted, "seed \(seed)")
            #expect(errors.last == told.suffix(JobErrors.bound), "seed \(seed)")
        }
    }
}
