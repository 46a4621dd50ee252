internal import Synchronization

// The log numbers events; those who watch keep only a number.
//
// State changes, errors and ends stay in `kept`, oldest first, up to a bound; of progress only the newest of each job is
// there. A watcher asks for what follows the last sequence number it has seen, sends it at its own pace, and asks again:
// however slow it is, it costs the agent one number, and what it misses is nothing but progress in between.
//
// With a history, events go to it as they are added, and `visible` says how far they may be seen: not before they are kept.
// So what a watcher has seen is there after the agent was killed, and no number that it has seen is used again. When
// nothing can be kept, events are shown without (`showUnkept`): a full disk makes nobody wait. What is kept leaves the memory
// early; up to `boundary` events are the history's to tell.

/// All that happened to jobs, numbered, for any number of watchers at any point of it.
package final class EventLog: Sendable {
    private struct State {
        var kept: [JobEvent] = []
        var progress: [JobNumber: JobEvent] = [:]
        var last: UInt64
        /// What may be seen.
        var visible: UInt64
        /// What the history has.
        var stored: UInt64
        /// What memory has lost.
        var boundary: UInt64
        var showsUnkept = false
        var reserved: UInt64
        var isClosed = false
        var waiters: [UInt64: Waiter] = [:]
        var nextWaiter: UInt64 = 0
        /// Jobs that have no more events, though there is none that says so; the last ones.
        var over: [JobNumber] = []

        /// Events wait to be kept.
        var isPending: Bool { (kept.last?.sequence ?? 0) > stored }
    }

    private struct Waiter {
        let job: JobNumber?
        let sequence: UInt64
        let continuation: CheckedContinuation<Void, Never>
    }

    /// How many numbers are set aside at a time, so that a restart cannot give one out again.
    static let reservation: UInt64 = 1 << 20

    /// How many of those are remembered.
    private static let mostOver = 256

    private let state: Mutex<State>
    private let bound: Int
    private let clock: @Sendable () -> Int64
    private let reserve: @Sendable (UInt64) -> Void
    private let history: HistoryWriter?

    /// How many of the events that are kept elsewhere stay in memory.
    private static let keptBound = 1000

    /// Makes an empty log whose first event has the number `after` + 1.
    ///
    /// - Parameters:
    ///   - reserved: numbers up to this one are recorded as used already; nil: none is.
    ///   - bound: how many events, progress not counted, stay in memory.
    ///   - history: where events are kept; nil: nowhere.
    ///   - clock: nanoseconds since 1970-01-01 UTC.
    ///   - reserve: called when numbers up to the given one should be recorded as used; must not wait.
    package convenience init(
        after: UInt64, bound: Int = 10_000, clock: @escaping @Sendable () -> Int64 = WallClock.now,
        reserve: @escaping @Sendable (UInt64) -> Void = { _ in }
    ) {
        self.init(
            after: after, reserved: nil, bound: bound, history: nil, clock: clock, reserve: reserve)
    }

    init(
        after: UInt64, reserved: UInt64?, bound: Int = 10_000, history: HistoryWriter?,
        clock: @escaping @Sendable () -> Int64 = WallClock.now,
        reserve: @escaping @Sendable (UInt64) -> Void
    ) {
        precondition(bound > 0, "a log without room keeps nothing")
        state = Mutex(
            State(last: after, visible: after, stored: after, boundary: after, reserved: reserved ?? after))
        self.bound = bound
        self.history = history
        self.clock = clock
        self.reserve = reserve
    }

    /// The number of the last event that may be seen; that of the last run's reservation before there is one.
    package var lastSequence: UInt64 { state.withLock { $0.visible } }

    /// Events with higher numbers are in memory; of the others only the history tells.
    var boundary: UInt64 { state.withLock { $0.boundary } }

    /// Whether anybody waits for events of `job`.
    package func isWatched(_ job: JobNumber) -> Bool {
        state.withLock { state in state.waiters.values.contains { $0.job == nil || $0.job == job } }
    }

    /// Adds events that happened together and wakes those who wait for them. Returns the events with their
    /// numbers.
    @discardableResult
    package func append(_ kinds: [JobEvent.Kind], job: JobNumber, id: String) -> [JobEvent] {
        append(kinds, job: job, id: id, end: { _ in nil })
    }

    /// As `append`; `end` says what is kept together with the events, or not at all: what is left of a job that ends
    /// with them. It is called under the log's lock.
    @discardableResult
    func append(
        _ kinds: [JobEvent.Kind], job: JobNumber, id: String, end: ([JobEvent]) -> HistoryEntry?
    ) -> [JobEvent] {
        let time = clock()
        let (events, woken, reservation) = state.withLock { state in
            let events = kinds.map { kind in
                state.last += 1
                let event = JobEvent(sequence: state.last, time: time, job: job, jobID: id, kind: kind)
                keep(event, &state)
                return event
            }
            if let history {
                let entries = events.filter { !$0.kind.isProgress }.map { HistoryEntry.event($0) }
                // In the order of the numbers, since nothing else is added meanwhile.
                history.add(entries + [end(events)].compactMap { $0 })
            } else {
                state.stored = state.last
            }
            if state.showsUnkept || !state.isPending { state.visible = state.last }
            var reservation: UInt64?
            if state.last + Self.reservation / 2 > state.reserved {
                state.reserved = state.last + Self.reservation
                reservation = state.reserved
            }
            return (events, takeReady(&state), reservation)
        }
        if let reservation { reserve(reservation) }
        for continuation in woken { continuation.resume() }
        return events
    }

    private func keep(_ event: JobEvent, _ state: inout State) {
        if event.kind.isProgress {
            state.progress[event.job] = event
            return
        }
        if event.kind.isEnd { state.progress[event.job] = nil }
        state.kept.append(event)
        trim(&state)
    }

    /// Makes room, in big steps, so that an append costs no move of the whole array.
    private func trim(_ state: inout State) {
        var surplus = state.kept.count - bound
        if surplus <= bound / 4 { surplus = 0 }
        let limit = min(bound, Self.keptBound)
        if history != nil, state.kept.count > limit + limit / 4 {
            let elsewhere = state.kept.partition(after: state.stored)
            surplus = max(surplus, min(state.kept.count - limit, elsewhere))
        }
        guard surplus > 0 else { return }
        state.boundary = state.kept[surplus - 1].sequence
        state.kept.removeFirst(surplus)
    }

    /// The history has all events up to `sequence`.
    func kept(upTo sequence: UInt64) {
        let woken = state.withLock { state in
            state.stored = max(state.stored, sequence)
            if !state.isPending { state.showsUnkept = false }
            let next = state.kept.partition(after: state.stored)
            let end =
                next < state.kept.count && !state.showsUnkept ? state.kept[next].sequence - 1 : state.last
            state.visible = max(state.visible, end)
            trim(&state)
            return takeReady(&state)
        }
        for continuation in woken { continuation.resume() }
    }

    /// Shows events that are not kept, until all are.
    func showUnkept() {
        let woken = state.withLock { state in
            state.showsUnkept = true
            state.visible = state.last
            return takeReady(&state)
        }
        for continuation in woken { continuation.resume() }
    }

    /// Those who need not wait any more; the caller resumes them.
    private func takeReady(_ state: inout State) -> [CheckedContinuation<Void, Never>] {
        var ready: [CheckedContinuation<Void, Never>] = []
        for (number, waiter) in state.waiters where hasEvent(after: waiter.sequence, of: waiter.job, state) {
            ready.append(waiter.continuation)
            state.waiters[number] = nil
        }
        return ready
    }

    /// The events with higher numbers than `sequence` that memory still has and that may be seen, oldest first; those of one
    /// job where it is given. At most `limit`: ask again from the last one.
    package func events(after sequence: UInt64, of job: JobNumber? = nil, limit: Int = 256) -> [JobEvent] {
        state.withLock { state in
            var found: [JobEvent] = []
            let start = state.kept.partition(after: sequence)
            for event in state.kept[start...] where job == nil || event.job == job {
                if found.count == limit || event.sequence > state.visible { break }
                found.append(event)
            }
            // Progress beyond the events that fit would be out of order: it is asked for again.
            let isCut = found.count == limit
            let horizon = isCut ? (found.last?.sequence ?? sequence) : state.visible
            let progress = progress(after: sequence, through: horizon, of: job, state)
            guard !progress.isEmpty else { return found }
            return (found + progress).sorted { $0.sequence < $1.sequence }
        }
    }

    /// The newest progress of each job, or of one, with numbers in a range.
    func progress(after sequence: UInt64, through last: UInt64, of job: JobNumber?) -> [JobEvent] {
        state.withLock { progress(after: sequence, through: last, of: job, $0) }
    }

    private func progress(
        after sequence: UInt64, through last: UInt64, of job: JobNumber?, _ state: State
    ) -> [JobEvent] {
        state.progress.values.filter { event in
            event.sequence > sequence && event.sequence <= last && (job == nil || event.job == job)
        }
    }

    /// Waits until there is an event with a higher number than `sequence` (of `job`, where it is given), or
    /// the log is closed, or the task is cancelled.
    package func waitForEvent(after sequence: UInt64, of job: JobNumber? = nil) async {
        let number = state.withLock { state in
            state.nextWaiter += 1
            return state.nextWaiter
        }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let mustWait = state.withLock { state in
                    let isOver = job.map(state.over.contains) ?? false
                    if Task.isCancelled || state.isClosed || isOver
                        || hasEvent(after: sequence, of: job, state)
                    {
                        return false
                    }
                    state.waiters[number] = Waiter(job: job, sequence: sequence, continuation: continuation)
                    return true
                }
                if !mustWait { continuation.resume() }
            }
        } onCancel: {
            state.withLock { $0.waiters.removeValue(forKey: number) }?.continuation.resume()
        }
    }

    private func hasEvent(after sequence: UInt64, of job: JobNumber?, _ state: State) -> Bool {
        guard sequence < state.visible else { return false }
        // What memory does not have, the history may.
        if job == nil || sequence < state.boundary { return true }
        let start = state.kept.partition(after: sequence)
        return state.kept[start...].contains { $0.job == job && $0.sequence <= state.visible }
            || state.progress.values.contains {
                $0.job == job && $0.sequence > sequence && $0.sequence <= state.visible
            }
    }

    /// Wakes who waits for events of `job` although there is none: it will have no more.
    package func wake(_ job: JobNumber) {
        let woken = state.withLock { state in
            // Who is about to wait need not, either.
            state.over.append(job)
            if state.over.count > Self.mostOver { state.over.removeFirst(Self.mostOver / 2) }
            let woken = state.waiters.filter { $0.value.job == job }
            for number in woken.keys { state.waiters[number] = nil }
            return woken
        }
        for waiter in woken.values { waiter.continuation.resume() }
    }

    /// Whether `close` was called.
    package var isClosed: Bool { state.withLock { $0.isClosed } }

    /// Says that no events follow and wakes everybody.
    package func close() {
        let waiters = state.withLock { state in
            state.isClosed = true
            let waiters = state.waiters
            state.waiters = [:]
            return waiters
        }
        for waiter in waiters.values { waiter.continuation.resume() }
    }
}

extension [JobEvent] {
    /// The index of the first event with a higher number than `sequence`; the array is sorted.
    fileprivate func partition(after sequence: UInt64) -> Int {
        var low = startIndex
        var high = endIndex
        while low < high {
            let middle = low + (high - low) / 2
            if self[middle].sequence <= sequence { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
