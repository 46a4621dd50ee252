internal import BlockIO
internal import Glibc
internal import Synchronization

/// An engine without threads and without real time: the test's own thread runs its jobs, and what waits is resumed in
/// the order of a virtual clock. One seed, one history; a history that gets stuck is noticed, not waited for.
final class SimEngine: IOEngine {
    private struct Event {
        let due: Duration
        let number: UInt64
        let continuation: UnsafeContinuation<Bool, Never>
    }

    private struct State {
        var jobs: [UnownedJob] = []
        var events: [Event] = []
        var nextEvent: UInt64 = 0
        var now = Duration.zero
        var chance: Chance
        var thread: pthread_t?
        var observer: (@Sendable () -> Void)?
        var isStopped = false
        var isBeyondLimit = false
    }

    let name = "simulation"
    private let state: Mutex<State>
    /// How long a history may last: what only looks now and then whether it can go on is stuck, too.
    private let limit: Duration

    init(seed: UInt64, limit: Duration = .seconds(1 << 30)) {
        state = Mutex(State(chance: Chance(seed: seed)))
        self.limit = limit
    }

    var isCurrent: Bool {
        state.withLock { $0.thread.map { pthread_equal($0, pthread_self()) != 0 } ?? false }
    }
    var now: Duration { state.withLock { $0.now } }
    /// Something was still to come, but after the time that a history may last.
    var isBeyondLimit: Bool { state.withLock { $0.isBeyondLimit } }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        state.withLock { $0.jobs.append(job) }
    }

    func checkIsolated() { preconditionCurrent() }

    /// Calls `observer` after every step from now on.
    func observe(_ observer: @escaping @Sendable () -> Void) { state.withLock { $0.observer = observer } }

    func random<Result: Sendable>(_ body: (inout Chance) -> Result) -> Result {
        state.withLock { body(&$0.chance) }
    }

    /// Runs `main` and whatever it starts until nothing can go on; false when `main` did not come to its end.
    func drive(_ main: @escaping @Sendable () async -> Void) -> Bool {
        let isDone = Flag()
        state.withLock { $0.thread = pthread_self() }
        // Ends before this function does, or hangs for ever, which is what this function tells.
        _ = Task(executorPreference: self) {
            await main()
            isDone.set()
        }
        while step() {}
        state.withLock { $0.thread = nil }
        return isDone.isSet
    }

    /// Makes the calling thread the engine's, for tests of parts that never wait.
    func adoptThread() { state.withLock { $0.thread = pthread_self() } }

    /// Nothing runs on this engine any more: what it was doing is left as it is, as by a kill.
    func stop() { state.withLock { $0.isStopped = true } }

    private func step() -> Bool {
        if state.withLock({ $0.isStopped }) { return false }
        let (job, event, observer) = state.withLock {
            state -> (UnownedJob?, Event?, (@Sendable () -> Void)?) in
            if !state.jobs.isEmpty {
                // Mostly in order, as engines do, but nothing may depend on it.
                let index = state.chance.oneIn(4) ? state.chance.below(state.jobs.count) : 0
                return (state.jobs.remove(at: index), nil, state.observer)
            }
            guard
                let next = state.events.indices.min(by: {
                    (state.events[$0].due, state.events[$0].number) < (
                        state.events[$1].due, state.events[$1].number
                    )
                })
            else { return (nil, nil, nil) }
            if state.events[next].due > limit {
                state.isBeyondLimit = true
                return (nil, nil, nil)
            }
            let event = state.events.remove(at: next)
            state.now = max(state.now, event.due)
            return (nil, event, state.observer)
        }
        if let job {
            job.runSynchronously(on: asUnownedTaskExecutor())
        } else if let event {
            event.continuation.resume(returning: true)
        } else {
            return false
        }
        observer?()
        return true
    }

    /// Returns after `delay` of virtual time: true; or false at once when the task is cancelled, if that is asked for.
    @discardableResult
    func pass(_ delay: Duration, cancellable: Bool = false) async -> Bool {
        let number = state.withLock { state in
            state.nextEvent += 1
            return state.nextEvent
        }
        return await withTaskCancellationHandler {
            await withUnsafeContinuation { continuation in
                let isCancelled = state.withLock { state in
                    if cancellable && Task.isCancelled { return true }
                    state.events.append(
                        Event(due: state.now + delay, number: number, continuation: continuation))
                    return false
                }
                if isCancelled { continuation.resume(returning: false) }
            }
        } onCancel: {
            guard cancellable else { return }
            let event = state.withLock { state in
                state.events.firstIndex { $0.number == number }.map { state.events.remove(at: $0) }
            }
            event?.continuation.resume(returning: false)
        }
    }

    /// A request's latency: nothing, a little, or sometimes much.
    func latency() async {
        let delay = random { chance -> Duration? in
            switch chance.below(8) {
            case 0: nil
            case 1: .microseconds(chance.below(50_000))
            default: .microseconds(chance.below(1000))
            }
        }
        if let delay { await pass(delay) }
    }

    // The simulated devices do no file I/O.
    func read(_: Int32, _: UnsafeMutableRawBufferPointer, at _: UInt64) async -> Int { Int(-ENOSYS) }
    func write(_: Int32, _: UnsafeRawBufferPointer, at _: UInt64) async -> Int { Int(-ENOSYS) }
    func synchronize(_: Int32, dataOnly _: Bool) async -> Int { Int(-ENOSYS) }
    func allocate(_: Int32, mode _: Int32, _: ByteRange) async -> Int { Int(-ENOSYS) }
    func synchronizeRange(_: Int32, _: ByteRange, flags _: UInt32) async -> Int { Int(-ENOSYS) }
    func blocking<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result { body() }
    func shutDown() async {}
}
