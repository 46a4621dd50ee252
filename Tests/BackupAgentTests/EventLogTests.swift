import Synchronization
import TestKit
import Testing

@testable import BackupAgent

@Suite("The log of events")
struct EventLogTests {
    private static let jobs = (1...3).map { JobNumber(value: $0) }

    @Test("a watcher that asks again and again sees every event but progress, in order, whenever it asks")
    func watchersLoseNothing() {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        for _ in 0..<200 {
            let log = EventLog(after: UInt64.random(in: 0...100, using: &random), clock: { 0 })
            var model: [JobEvent] = []
            var watchers = Self.jobs.map { (job: JobNumber?.some($0), last: UInt64(0), seen: [JobEvent]()) }
            watchers.append((job: nil, last: 0, seen: []))
            for step in 0..<200 {
                let job = Self.jobs[Int.random(in: 0..<3, using: &random)]
                let kinds: [JobEvent.Kind] = (0..<Int.random(in: 1...3, using: &random)).map { _ in
                    random.oneIn(2)
                        ? .progress(JobProgress(current: UInt64(step), total: 1000))
                        : .stateChanged(.running, previous: .paused, pauseReason: nil)
                }
                model += log.append(kinds, job: job, id: "job\(job.value)")
                for index in watchers.indices where random.oneIn(4) || step == 199 {
                    repeat {
                        let events = log.events(
                            after: watchers[index].last, of: watchers[index].job,
                            limit: Int.random(in: 1...20, using: &random))
                        watchers[index].seen += events
                        watchers[index].last = events.last?.sequence ?? watchers[index].last
                        if events.isEmpty { break }
                    } while step == 199
                }
            }
            for watcher in watchers {
                let expected = model.filter { watcher.job == nil || $0.job == watcher.job }
                #expect(
                    watcher.seen.filter { !$0.kind.isProgress } == expected.filter { !$0.kind.isProgress },
                    "seed \(seed)")
                #expect(watcher.seen.map(\.sequence) == watcher.seen.map(\.sequence).sorted())
                #expect(Set(watcher.seen.map(\.sequence)).count == watcher.seen.count)
                for job in Self.jobs where watcher.job == nil || watcher.job == job {
                    let newest = model.last { $0.job == job && $0.kind.isProgress }
                    #expect(watcher.seen.last { $0.job == job && $0.kind.isProgress } == newest)
                }
            }
        }
    }

    @Test("a log that nobody reads keeps a bounded number of events")
    func bounded() {
        let log = EventLog(after: 0, bound: 100, clock: { 0 })
        for step in 0..<100_000 {
            log.append(
                [.progress(JobProgress(current: UInt64(step), total: 1 << 40)), .pending], job: Self.jobs[0],
                id: "a")
        }
        let events = log.events(after: 0, limit: .max)
        #expect(events.count <= 126 && events.count >= 100)
        #expect(events.last?.sequence == 200_000)
    }

    @Test("whoever waits is woken by an event of its job, and by no other's")
    func waking() async {
        let log = EventLog(after: 0, clock: { 0 })
        let isAwake = Mutex(false)
        async let waiting: Void = {
            await log.waitForEvent(after: 0, of: Self.jobs[0])
            isAwake.withLock { $0 = true }
        }()
        while !log.isWatched(Self.jobs[0]) { await Task.yield() }
        log.append([.pending], job: Self.jobs[1], id: "b")
        #expect(log.isWatched(Self.jobs[0]))
        #expect(!isAwake.withLock { $0 })
        log.append([.pending], job: Self.jobs[0], id: "a")
        await waiting
        await log.waitForEvent(after: 0, of: Self.jobs[0])
    }

    @Test("a wait ends when the task is cancelled, the job is woken or the log is closed")
    func waitsEnd() async {
        let log = EventLog(after: 0, clock: { 0 })
        let cancelled = Task { await log.waitForEvent(after: 0) }
        while !log.isWatched(Self.jobs[0]) { await Task.yield() }
        cancelled.cancel()
        await cancelled.value
        let woken = Task { await log.waitForEvent(after: 0, of: Self.jobs[1]) }
        while !log.isWatched(Self.jobs[1]) { await Task.yield() }
        log.wake(Self.jobs[1])
        await woken.value
        let closed = Task { await log.waitForEvent(after: 0) }
        while !log.isWatched(Self.jobs[0]) { await Task.yield() }
        log.close()
        await closed.value
        await log.waitForEvent(after: 0)
    }

    @Test("numbers go on after the reservation of the run before")
    func reservations() {
        let reserved = Mutex<[UInt64]>([])
        let log = EventLog(
            after: 41, clock: { 0 }, reserve: { number in reserved.withLock { $0.append(number) } })
        let first = log.append([.pending], job: Self.jobs[0], id: "a")
        #expect(first.first?.sequence == 42)
        #expect(reserved.withLock { $0 } == [42 + EventLog.reservation])
        for _ in 0..<1000 { log.append([.pending], job: Self.jobs[0], id: "a") }
        #expect(reserved.withLock { $0 }.count == 1, "a reservation lasts for many events")
    }
}
