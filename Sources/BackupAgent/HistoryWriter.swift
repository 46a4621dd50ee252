internal import Synchronization

// The way of what happens into the database.
//
// Whoever has something to keep adds it and goes on: nobody waits for the disk. One task takes what there is, writes it in
// one transaction, and tells the log how far events are kept; only then does a watcher see them. When the database fails
// or does not answer, the log is told to show events all the same: jobs and their watchers go on, the operator is told, and
// what waits to be written is bounded.

/// What is to be kept.
enum HistoryEntry: Sendable {
    case event(JobEvent)
    case ended(JobNumber, JobInfo)
    case key(RequestKeys.Change)
}

/// How much history is kept.
package struct HistoryLimits: Sendable, Hashable {
    /// Jobs that ended longer ago are forgotten.
    package var age: Duration
    /// More jobs than these are not kept; the oldest go.
    package var count: Int

    package init(age: Duration = .seconds(90 * 86400), count: Int = 10_000) {
        self.age = age
        self.count = count
    }
}

/// Writes the history, one batch after another, off everybody's way.
final class HistoryWriter: Sendable {
    private struct State {
        var entries: [HistoryEntry] = []
        var sequence: UInt64?
        var jobNumber: UInt64?
        /// How many entries were given up.
        var lost = 0
        /// There may be jobs to forget.
        var mayForget = true
        var isEnding = false
        var task: Task<Void, Never>?
    }

    /// What waits to be written at most; about ten megabytes.
    static let bound = 20_000
    private static let batchSize = 512
    /// Jobs that are forgotten in one step.
    private static let step = 50

    private let store: StateStore
    private let limits: HistoryLimits
    private let problems: AgentProblems
    private let clock: @Sendable () -> Int64
    /// How long the database may take for a batch before watchers wait for it no more.
    private let patience: Duration
    private let state = Mutex(State())
    private let wakeUps: AsyncStream<Void>
    private let waker: AsyncStream<Void>.Continuation

    init(
        store: StateStore, limits: HistoryLimits, problems: AgentProblems,
        patience: Duration = .seconds(2), clock: @escaping @Sendable () -> Int64 = WallClock.now
    ) {
        self.store = store
        self.limits = limits
        self.problems = problems
        self.patience = patience
        self.clock = clock
        (wakeUps, waker) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
    }

    /// Begins to write, and tells `log` how far its events are kept.
    func begin(telling log: EventLog) {
        let task = Task { await self.run(log) }
        state.withLock { $0.task = task }
    }

    /// Adds what is to be kept, in order. What is added together is written together or not at all. Does not wait.
    func add(_ entries: [HistoryEntry]) {
        guard !entries.isEmpty else { return }
        state.withLock { state in
            state.entries += entries
            // In big steps, so that adding costs no move of the whole array.
            let surplus = state.entries.count - Self.bound
            if surplus > Self.bound / 4 {
                state.entries.removeFirst(surplus)
                state.lost += surplus
            }
        }
        waker.yield()
    }

    /// Adds that event numbers up to `number` may be given out.
    func reserve(sequence number: UInt64) {
        state.withLock { $0.sequence = max($0.sequence ?? 0, number) }
        waker.yield()
    }

    /// Adds that job numbers up to `number` may be given out.
    func reserve(job number: UInt64) {
        state.withLock { $0.jobNumber = max($0.jobNumber ?? 0, number) }
        waker.yield()
    }

    /// Writes what was added and ends; returns false when that takes longer than `limit`.
    func finish(within limit: Duration) async -> Bool {
        let task = state.withLock { state in
            state.isEnding = true
            return state.task
        }
        waker.yield()
        let done = OneShot<Void>()
        let waiter = Task {
            await task?.value
            done.fulfil(())
        }
        let isDone = await done.wait(atMost: limit) != nil
        if !isDone { waiter.cancel() }
        return isDone
    }

    // MARK: Writing

    private func run(_ log: EventLog) async {
        var wakeUps = wakeUps.makeAsyncIterator()
        while true {
            let (batch, isForgetting, isEnding) = state.withLock { state in
                (take(&state), state.mayForget, state.isEnding)
            }
            if batch.isEmpty {
                if isEnding { return }
                if isForgetting { await forget() } else { _ = await wakeUps.next() }
                continue
            }
            guard await keep(batch, log) else { return }
        }
    }

    private struct Batch {
        var entries: [HistoryEntry] = []
        var sequence: UInt64?
        var jobNumber: UInt64?

        var isEmpty: Bool { entries.isEmpty && sequence == nil && jobNumber == nil }
    }

    private func take(_ state: inout State) -> Batch {
        var count = min(state.entries.count, Self.batchSize)
        // What was added together is an event and what goes with it: it is not cut there.
        while count < state.entries.count, !state.entries[count].isEvent { count += 1 }
        defer {
            state.entries.removeFirst(count)
            (state.sequence, state.jobNumber) = (nil, nil)
        }
        return Batch(
            entries: Array(state.entries.prefix(count)), sequence: state.sequence, jobNumber: state.jobNumber)
    }

    /// Writes a batch, however often that fails; false when it is given up because the agent ends.
    private func keep(_ batch: Batch, _ log: EventLog) async -> Bool {
        let stored = StateStore.HistoryBatch(
            batch.entries, sequence: batch.sequence, jobNumber: batch.jobNumber)
        let store = store
        var pause = Duration.seconds(1)
        while true {
            let outcome = OneShot<Result<Void, AgentError>>()
            let writing = Task {
                do throws(AgentError) {
                    try await store.keep(stored)
                    outcome.fulfil(.success(()))
                } catch {
                    outcome.fulfil(.failure(error))
                }
            }
            if await outcome.wait(atMost: patience) == nil {
                problems.raise(
                    .history,
                    """
                    The state directory has not answered for \(patience.components.seconds) seconds \
                    (\(store.path)): what happens to jobs is told, but not kept
                    """)
                log.showUnkept()
            }
            await writing.value
            switch outcome.value {
            case .success, nil:
                finished(stored, log)
                return true
            case .failure(let error):
                problems.raise(.history, "\(error.message): what happens to jobs is told, but not kept")
                log.showUnkept()
                if state.withLock({ $0.isEnding }) { return false }
                // Ends early when the agent does, and then it is tried once more.
                await rest(pause)
                pause = min(pause * 2, .seconds(60))
            }
        }
    }

    private func finished(_ batch: StateStore.HistoryBatch, _ log: EventLog) {
        if let last = batch.events.last { log.kept(upTo: last.sequence) }
        let (lost, isBehind) = state.withLock { state in
            if !batch.jobs.isEmpty { state.mayForget = true }
            return (state.lost, !state.entries.isEmpty)
        }
        if lost > 0 {
            problems.raise(
                .lostHistory,
                "The state directory could not be written for long: \(lost) entries are missing in the history"
            )
        }
        if !isBehind { problems.clear(.history) }
        if batch.sequence != nil || batch.jobNumber != nil { problems.clear(.numbers) }
    }

    private func rest(_ time: Duration) async {
        for _ in 0..<max(1, Int(time.components.seconds) * 10) {
            if state.withLock({ $0.isEnding }) { return }
            // It is never cancelled.
            try? await Task.sleep(for: .milliseconds(100))
        }
    }

    private func forget() async {
        state.withLock { $0.mayForget = false }
        guard store.refusal == nil else { return }
        let now = clock()
        do throws(AgentError) {
            let isMore = try await store.forget(
                before: now - limits.age.nanoseconds, beyond: limits.count,
                keyTime: now - RequestKeys.lifetime,
                limit: Self.step)
            if isMore { state.withLock { $0.mayForget = true } }
        } catch {
            // Tried again when the next job has ended.
            problems.raise(.history, error.message)
        }
    }
}

extension HistoryEntry {
    fileprivate var isEvent: Bool {
        if case .event = self { true } else { false }
    }
}

extension Duration {
    /// Nanoseconds; those that do not fit are cut.
    var nanoseconds: Int64 {
        let (product, overflow) = components.seconds.multipliedReportingOverflow(by: 1_000_000_000)
        return overflow ? Int64.max / 2 : product + components.attoseconds / 1_000_000_000
    }
}
