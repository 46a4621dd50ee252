internal import BlockIO

/// The requests of one job that are on their way to its target, and the means to stop waiting for them.
///
/// A target may hang, and a request to it cannot be taken back. So each runs in a task of its own, kept here, which
/// owns the memory that it writes from until the target returns; the copier that waits for it is resumed with
/// `.cancelled` while the task stays behind. Lives on the drive's engine.
final class TargetRequests: Sendable {
    private struct Request {
        var copier: UnsafeContinuation<BackupFailure?, Never>?
        var task: Task<Void, Never>?
    }

    private struct State {
        var isAbandoned = false
        var next: UInt64 = 0
        var requests: [UInt64: Request] = [:]
        var idleWaiters: [UnsafeContinuation<Void, Never>] = []
    }

    private let state: EngineIsolated<State>
    private let engine: any IOEngine

    init(engine: any IOEngine) {
        self.engine = engine
        state = EngineIsolated(State(), engine: engine)
    }

    /// Nothing may be started any more.
    var isAbandoned: Bool { state.value.isAbandoned }

    /// Runs `body` to its end, but returns `.cancelled` before that when `abandon` is called. What `body` needs it owns.
    /// Not after `abandon`. `givingWay`: nobody waits for this thread but the target.
    func perform(
        givingWay: Bool = false, _ body: @escaping @Sendable () async -> BackupFailure?
    ) async -> BackupFailure? {
        precondition(!state.value.isAbandoned, "an abandoned target is asked for nothing")
        return await withUnsafeContinuation { copier in
            let number = state.value.next
            state.value.next += 1
            state.value.requests[number] = Request(copier: copier)
            // What was read leaves before other chunks read: else the target waits until all of them have.
            let task = Task.immediate(executorPreference: engine) {
                let failure = await body()
                self.end(number, failure)
            }
            // It may have ended.
            state.value.requests[number]?.task = task
            // The target's process was woken, as often as not on this processor, where it would wait until this thread sleeps:
            // it is quick, and the disk is idle meanwhile.
            if givingWay { OwnThread.giveWay() }
        }
    }

    /// Resumes all copiers that wait, and lets the tasks know that nobody is interested any more.
    func abandon() {
        let requests = state.withState { state in
            state.isAbandoned = true
            let requests = state.requests.sorted { $0.key < $1.key }.map(\.value)
            for number in state.requests.keys { state.requests[number]?.copier = nil }
            return requests
        }
        for request in requests {
            request.task?.cancel()
            request.copier?.resume(returning: .cancelled)
        }
    }

    /// Returns when none is on its way.
    func allEnded() async {
        if state.value.requests.isEmpty { return }
        await withUnsafeContinuation { waiter in state.value.idleWaiters.append(waiter) }
    }

    private func end(_ number: UInt64, _ failure: BackupFailure?) {
        let (copier, idle) = state.withState { state in
            let copier = state.requests.removeValue(forKey: number)?.copier
            guard state.requests.isEmpty else { return (copier, [UnsafeContinuation<Void, Never>]()) }
            defer { state.idleWaiters = [] }
            return (copier, state.idleWaiters)
        }
        copier?.resume(returning: failure)
        for waiter in idle { waiter.resume() }
    }
}
