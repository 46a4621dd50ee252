internal import Synchronization

// The log keeps events; those who watch keep only a number.
//
// State changes, errors and ends stay in `kept`, oldest first, up to a bound. Of progress only the newest of
// each job is there. A watcher asks for what follows the last sequence number it has seen, sends it at its
// own pace, and asks again: however slow it is, it costs the agent one number, and what it misses is nothing
// but progress in between (and, beyond the bound, the oldest events of all jobs).

/// All that happened to jobs, numbered, for any number of watchers at any point of it.
package final class EventLog: Sendable {
    private struct State {
        var kept: [JobEvent] = []
        var progress: [JobNumber: JobEvent] = [:]
        var last: UInt64
        var reserved: UInt64
        var isReserving = false
        var isClosed = false
        var waiters: [UInt64: Waiter] = [:]
        var nextWaiter: UInt64 = 0
    }

    private struct Waiter {
        let job: JobNumber?
        let continuation: CheckedContinuation<Void, Never>
    }

    /// How many numbers are set aside at a time, so that a restart cannot give one out again.
    static let reservation: UInt64 = 1 << 20

    private let state: Mutex<State>
    private let bound: Int
    private let clock: @Sendable () -> Int64
    private let reserve: @Sendable (UInt64) -> Void

    /// Makes an empty log whose first event has the number `after` + 1.
    ///
    /// - Parameters:
    ///   - bound: how many events, progress not counted, are kept.
    ///   - clock: nanoseconds since 1970-01-01 UTC.
    ///   - reserve: called when numbers up to the given one should be recorded as used; must not wait.
    package init(
        after: UInt64, bound: Int = 10_000, clock: @escaping @Sendable () -> Int64 = WallClock.now,
        reserve: @escaping @Sendable (UInt64) -> Void = { _ in }
    ) {
        precondition(bound > 0, "a log without room keeps nothing")
        state = Mutex(State(last: after, reserved: after))
        self.bound = bound
        self.clock = clock
        self.reserve = reserve
    }

    /// The number of the last event; that of the last run's reservation before there is one.
    package var lastSequence: UInt64 { state.withLock { $0.last } }

    /// Whether anybody waits for events of `job`.
    package func isWatched(_ job: JobNumber) -> Bool {
        state.withLock { state in state.waiters.values.contains { $0.job == nil || $0.job == job } }
    }

    /// Adds events that happened together and wakes those who wait for them. Returns the events with their
    /// numbers.
    @discardableResult
    package func append(_ kinds: [JobEvent.Kind], job: JobNumber, id: String) -> [JobEvent] {
        let time = clock()
        let (events, woken, reservation) = state.withLock { state in
            let events = kinds.map { kind in
                state.last += 1
                let event = JobEvent(sequence: state.last, time: time, job: job, jobID: id, kind: kind)
                keep(event, &state)
                return event
            }
            var woken: [CheckedContinuation<Void, Never>] = []
            for (number, waiter) in state.waiters where waiter.job == nil || waiter.job == job {
                woken.append(waiter.continuation)
                state.waiters[number] = nil
            }
            var reservation: UInt64?
            if state.last + Self.reservation / 2 > state.reserved {
                state.reserved = state.last + Self.reservation
                reservation = state.reserved
            }
            return (events, woken, reservation)
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
        // Trimmed in big steps, so that an append costs no move of the whole array.
        if state.kept.count > bound + bound / 4 { state.kept.removeFirst(state.kept.count - bound) }
    }

    /// The events with higher numbers than `sequence` that the log still has, oldest first; those of one job
    /// where it is given. At most `limit`: ask again from the last one.
    package func events(after sequence: UInt64, of job: JobNumber? = nil, limit: Int = 256) -> [JobEvent] {
        state.withLock { state in
            var found: [JobEvent] = []
            let start = state.kept.partition(after: sequence)
            for event in state.kept[start...] where job == nil || event.job == job {
                if found.count == limit { break }
                found.append(event)
            }
            // Progress beyond the events that fit would be out of order: it is asked for again.
            let isCut = found.count == limit
            let horizon = isCut ? (found.last?.sequence ?? sequence) : UInt64.max
            let progress = state.progress.values.filter { event in
                event.sequence > sequence && event.sequence < horizon && (job == nil || event.job == job)
            }
            guard !progress.isEmpty else { return found }
            return (found + progress).sorted { $0.sequence < $1.sequence }
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
                    if Task.isCancelled || state.isClosed || hasEvent(after: sequence, of: job, state) {
                        return false
                    }
                    state.waiters[number] = Waiter(job: job, continuation: continuation)
                    return true
                }
                if !mustWait { continuation.resume() }
            }
        } onCancel: {
            state.withLock { $0.waiters.removeValue(forKey: number) }?.continuation.resume()
        }
    }

    private func hasEvent(after sequence: UInt64, of job: JobNumber?, _ state: State) -> Bool {
        guard sequence < state.last else { return false }
        let start = state.kept.partition(after: sequence)
        return state.kept[start...].contains { job == nil || $0.job == job }
            || state.progress.values.contains { $0.sequence > sequence && (job == nil || $0.job == job) }
    }

    /// Wakes who waits for events of `job` although there is none: it will have no more.
    package func wake(_ job: JobNumber) {
        let woken = state.withLock { state in
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
