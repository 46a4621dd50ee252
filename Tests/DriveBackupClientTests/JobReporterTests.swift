import DriveBackupClient
import Foundation
import Synchronization
import Testing

@testable import DriveBackupCLI

@Suite("What is told of a job")
struct JobReporterTests {
    /// A clock that goes when it is told to.
    private final class Clock: Sendable {
        private let time = Mutex(Duration.zero)
        var now: Duration { time.withLock { $0 } }
        func pass(_ duration: Duration) { time.withLock { $0 += duration } }
    }

    private let capture = Capture()
    private let clock = Clock()

    private func reporter(_ style: JobReporter.Style) -> JobReporter {
        let clock = clock
        return JobReporter(style, console: capture.console, stream: .error, story: JobStory(id: "vm1")) {
            clock.now
        }
    }

    @Test("a log has a line for the start, every ten seconds, at changes of state, and at the end")
    func lines() async {
        let reporter = reporter(.lines)
        await reporter.handle(.of(1, .stateChanged(StateChanged(state: .created))))
        await reporter.handle(.started(2))
        await reporter.handle(.of(3, .stateChanged(StateChanged(state: .running, previous: .created))))
        for second in 1...25 {
            await reporter.handle(.progress(UInt64(3 + second), Int64(second) << 20, 100 << 20))
            clock.pass(.seconds(1))
            await reporter.tick()
        }
        await reporter.handle(.of(40, .stateChanged(StateChanged(state: .paused, previous: .running))))
        await reporter.handle(.of(41, .stateChanged(StateChanged(state: .running, previous: .paused))))
        await reporter.handle(.completed(42, 100 << 20))
        await reporter.conclude()
        let lines = capture.errorLines
        #expect(lines.count == 6)
        #expect(lines[0].hasPrefix("copying vm1 to /x (full, raw)"))
        #expect(lines[1] == "vm1: 10%, 10.0 MiB of 100 MiB, 1.00 MiB/s, 1:30 left")
        #expect(lines[2].hasPrefix("vm1: 20%, 20.0 MiB of 100 MiB, "))
        #expect(lines[3].hasPrefix("vm1 is paused at 25.0 MiB of 100 MiB"))
        #expect(lines[4] == "vm1 goes on")
        #expect(lines[5] == "backed up vm1 to /x (full, raw): 100 MiB in 50 s, 2.00 MiB/s")
        #expect(capture.output.isEmpty)
    }

    @Test("JSON is one object a line, and nothing else")
    func json() async throws {
        let reporter = reporter(.json)
        await reporter.handle(.started(1))
        await reporter.handle(.progress(2, 1, 2))
        clock.pass(.seconds(60))
        await reporter.tick()
        await reporter.remark("nobody wants this")
        await reporter.handle(.completed(3, 2))
        await reporter.conclude()
        #expect(capture.error.isEmpty)
        let objects = try capture.outputLines.map { line in
            try #require(JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
        }
        #expect(objects.count == 3)
        #expect(objects.map { $0["sequence"] as? Int } == [1, 2, 3])
        #expect((objects[0]["started"] as? [String: Any])?["sync"] as? String == "full")
        #expect((objects[2]["completed"] as? [String: Any])?["result"] as? String == "completed")
    }

    @Test("the bar is drawn in place, within the terminal, and is gone at the end")
    func bar() async {
        let reporter = reporter(.bar(width: { 40 }, unicode: true))
        await reporter.handle(.started(1))
        for step in 0...50 {
            await reporter.handle(.progress(UInt64(step + 2), Int64(step) << 20, 50 << 20))
            clock.pass(.milliseconds(300))
        }
        await reporter.handle(
            .of(60, .ioError(IOErrorEvent(message: "Couldn't\u{1B}[2Jread", action: .ignore))))
        await reporter.handle(.completed(61, 50 << 20))
        await reporter.conclude()
        let shown = capture.error.components(separatedBy: "\r\u{1B}[K")
        for (index, piece) in shown.dropLast().enumerated() where !piece.contains("\n") {
            #expect(ColumnText.width(piece) <= 39, "\(index): \(piece)")
        }
        #expect(!capture.error.replacing("\r\u{1B}[K", with: "").contains("\u{1B}"))
        #expect(capture.error.contains("Couldn't?[2Jread; left out\n"))
        #expect(shown.last?.hasPrefix("backed up vm1 to /x") == true)
    }

    @Test("a job met when it waits for finalize says what it waits for")
    func pending() async {
        let reporter = reporter(.lines)
        await reporter.handle(.of(5, .stateChanged(StateChanged(state: .pending, previous: .waiting))))
        #expect(capture.error.isEmpty)
        await reporter.handle(.of(6, .pending(Pending())))
        #expect(capture.error.contains("drive-backup job finalize vm1"))
    }

    @Test("the story of a job is the same from its events and from the job itself")
    func stories() {
        var fromEvents = JobStory(id: "vm1")
        fromEvents.apply(.started(1))
        fromEvents.apply(.progress(2, 5, 10))
        fromEvents.apply(.of(3, .failed(Failed(error: JobError(message: "why")))))
        fromEvents.apply(.of(4, .stateChanged(StateChanged(state: .concluded, previous: .aborting))))
        var job = Job()
        job.id = "vm1"
        job.drive = "vm1"
        job.target = "/x"
        job.sync = .full
        job.format = "raw"
        job.state = .concluded
        job.result = .failed
        job.error = JobError(message: "why")
        job.pointInTime = JobEvent.start
        job.endedAt = fromEvents.endedAt
        job.lastSequence = 4
        job.progress = Progress(current: 5, total: 10)
        #expect(JobStory(job) == fromEvents)
        #expect(fromEvents.exitStatus == .failed)
        #expect(fromEvents.ending == "backup of vm1 to /x failed: why")
    }
}

extension JobEvent {
    static let start: Int64 = 1_700_000_000_000_000_000

    static func of(_ sequence: UInt64, _ event: Event, job: String = "vm1") -> JobEvent {
        var result = JobEvent()
        result.sequence = sequence
        result.time = start + 50_000_000_000
        result.jobID = job
        result.event = event
        return result
    }

    static func started(_ sequence: UInt64, job: String = "vm1") -> JobEvent {
        var started = Started()
        started.drive = "vm1"
        started.target = "/x"
        started.pointInTime = start
        started.sync = .full
        started.format = "raw"
        return of(sequence, .started(started), job: job)
    }

    static func progress(_ sequence: UInt64, _ current: Int64, _ total: Int64) -> JobEvent {
        of(sequence, .progress(Progress(current: current, total: total)))
    }

    static func completed(_ sequence: UInt64, _ total: Int64, _ result: JobResult = .completed) -> JobEvent {
        let progress = Progress(current: total, total: total)
        return of(sequence, .completed(Completed(result: result, progress: progress)))
    }
}
