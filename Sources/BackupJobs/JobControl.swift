internal import Synchronization

/// The handle by which others steer a running job and see how far it is.
///
/// All of it may be called from any thread at any time, before, during and after the run, and waits for nothing
/// (`quiescent` excepted): it changes a few words under a lock and wakes the copy loop.
package final class JobControl: Sendable {
    /// How much is copied, in bytes clipped to the drive's size. `current` never exceeds `total`, and only grows;
    /// `total` only shrinks. Equal once the run has returned without error.
    package struct Progress: Sendable, Hashable {
        package var current: UInt64
        package var total: UInt64

        package init(current: UInt64, total: UInt64) {
            self.current = current
            self.total = total
        }
    }

    private struct State {
        var speedBytesPerSecond: Int64 = 0
        var depth = 16
        var isPaused = false
        var isHalted = false
        var isCancelled = false
        var isFinishing = false
        var isSuspended = false
        var isRunning = false
        /// The run has ended, or is about to: something has failed, and requests to the target are left behind.
        var isEnding = false
        var inFlight = 0
        var progress = Progress(current: 0, total: 0)
        var nextWaiter: UInt64 = 0
        var waiters: [UInt64: UnsafeContinuation<Bool, Never>] = [:]

        var isHeld: Bool { isPaused || isHalted }
        var isQuiescent: Bool { isHeld && inFlight == 0 && !isCancelled && !isEnding }
        var mayGoOn: Bool { !isCancelled && !isHeld && !isSuspended && inFlight < depth }
        var willNotBeQuiescent: Bool { !isHeld || isCancelled || isEnding }

        /// Takes out whoever waits for what has come about, or can't any more.
        mutating func takeWaiters() -> [UnsafeContinuation<Bool, Never>] {
            guard !waiters.isEmpty, isQuiescent || willNotBeQuiescent else { return [] }
            defer { waiters = [:] }
            return Array(waiters.values)
        }
    }

    private let state = Mutex(State())
    /// Raised whenever the copy loop should look again.
    let signal = Signal()

    package init() {}

    // MARK: Verbs

    /// Starts nothing new from now on; what is in flight ends. See `isQuiescent`.
    package func pause() { change { $0.isPaused = true } }

    /// Goes on after `pause`, and after an error that has halted the copy.
    package func resume() {
        change { state in
            state.isPaused = false
            state.isHalted = false
        }
    }

    /// Ends the run with `BackupFailure.cancelled`, paused or not. Nothing new starts; reads in flight are waited
    /// for, requests to the target are left behind. Cannot be taken back.
    package func cancel() { change { $0.isCancelled = true } }

    /// Ends the run with `BackupFailure.suspended` when nothing is in flight any more: the job goes on in the next agent.
    package func suspend() { change { $0.isSuspended = true } }

    /// Ends a job of sync `none` well: what was saved until now is copied to the target, then `run` returns. Nothing for other
    /// jobs. Cannot be taken back; `cancel` may follow.
    package func finish() {
        change { state in
            state.isFinishing = true
            // What was saved is to be copied.
            state.isPaused = false
            state.isHalted = false
        }
    }

    /// Limits the bytes a second from now on; 0 is no limit. A job that sleeps wakes at once.
    package func setSpeed(_ bytesPerSecond: Int64) {
        precondition(bytesPerSecond >= 0, "a negative speed is refused before it gets here")
        change { $0.speedBytesPerSecond = bytesPerSecond }
    }

    /// Sets how many chunks may be in flight, at least one; more than that end first when it becomes less.
    package func setDepth(_ depth: Int) {
        precondition(depth >= 1, "a job copies at least one chunk at a time")
        change { $0.depth = depth }
    }

    // MARK: What is

    package var progress: Progress { state.withLock { $0.progress } }
    package var speedBytesPerSecond: Int64 { state.withLock { $0.speedBytesPerSecond } }
    package var isCancelled: Bool { state.withLock { $0.isCancelled } }
    /// `suspend` was called.
    package var isSuspended: Bool { state.withLock { $0.isSuspended } }
    /// `finish` was called.
    package var isFinishing: Bool { state.withLock { $0.isFinishing } }
    /// A pause was asked for, or an error has halted the copy, and neither was taken back; chunks may still be in flight.
    package var isPaused: Bool { state.withLock { $0.isHeld } }
    /// An error has halted the copy, as its policy says, and nobody has resumed it.
    package var isHalted: Bool { state.withLock { $0.isHalted } }
    /// Paused, and nothing is in flight: progress stands still until `resume`.
    package var isQuiescent: Bool { state.withLock { $0.isQuiescent } }

    /// Waits until a paused job is quiescent: true. False when it will not be: the pause was taken back, the job was
    /// cancelled or has ended, it was never paused, or the waiting task was cancelled.
    package func quiescent() async -> Bool {
        let number = state.withLock { state in
            state.nextWaiter += 1
            return state.nextWaiter
        }
        return await withTaskCancellationHandler {
            await withUnsafeContinuation { continuation in
                let answer: Bool? = state.withLock { state in
                    if state.isQuiescent { return true }
                    if state.willNotBeQuiescent || Task.isCancelled { return false }
                    state.waiters[number] = continuation
                    return nil
                }
                if let answer { continuation.resume(returning: answer) }
            }
        } onCancel: {
            state.withLock { $0.waiters.removeValue(forKey: number) }?.resume(returning: false)
        }
    }

    // MARK: The copy loop's side

    /// Whether a chunk may start now, with at most `limit` in flight; if so it counts as in flight until `chunkEnded`.
    func startChunk(atMost limit: Int = .max) -> Bool {
        state.withLock { state in
            guard state.mayGoOn, state.inFlight < limit else { return false }
            state.inFlight += 1
            return true
        }
    }

    /// Ends a chunk, of which the target holds `copied` bytes now.
    func chunkEnded(copied: UInt64) {
        change { state in
            state.inFlight -= 1
            state.progress.current += copied
        }
    }

    /// Goes past bytes that are in the target already, or not needed there, if that is allowed now.
    func pass(copied: UInt64, notNeeded: UInt64) -> Bool {
        state.withLock { state in
            guard state.mayGoOn else { return false }
            state.progress.current += copied
            state.progress.total -= notNeeded
            return true
        }
    }

    /// The copy stops by itself, because of an error, until `resume`.
    func halt() { change { $0.isHalted = true } }

    var isAnyInFlight: Bool { state.withLock { $0.inFlight > 0 } }

    func begin(total: UInt64) { state.withLock { $0.progress = Progress(current: 0, total: total) } }

    /// After a restart: what was copied. What is not needed is found again.
    func recovered(copied: UInt64) { change { $0.progress.current = copied } }

    /// A job of sync `none` has copied all it is to copy.
    func endTotal() { change { $0.progress.total = $0.progress.current } }

    func began() { change { $0.isRunning = true } }

    /// The run is about to return with a failure: it will be paused no more, whatever the target still does.
    func failed() { change { $0.isEnding = true } }

    func ended() {
        change { state in
            state.isRunning = false
            state.isEnding = true
        }
    }

    /// The run has begun and not returned.
    var isRunning: Bool { state.withLock { $0.isRunning } }

    private func change(_ body: (inout State) -> Void) {
        let (waiters, answer) = state.withLock { state in
            body(&state)
            return (state.takeWaiters(), state.isQuiescent)
        }
        for waiter in waiters { waiter.resume(returning: answer) }
        signal.raise()
    }
}
