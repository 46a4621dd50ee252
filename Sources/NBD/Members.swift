internal import Synchronization

/// Those who are there, and a way to wait until all have gone.
final class Members<Member: AnyObject & Sendable>: Sendable {
    private struct State {
        var isClosed = false
        var members: [ObjectIdentifier: Member] = [:]
        var waiters: [UInt64: UnsafeContinuation<Void, Never>] = [:]
        var nextWaiter: UInt64 = 0
    }

    private let maximum: Int
    private let state = Mutex(State())

    init(maximum: Int = .max) { self.maximum = maximum }

    var all: [Member] { state.withLock { Array($0.members.values) } }
    var count: Int { state.withLock { $0.members.count } }
    var isClosed: Bool { state.withLock { $0.isClosed } }

    /// False when nobody is let in any more, or there are too many.
    func join(_ member: Member) -> Bool {
        state.withLock { state in
            guard !state.isClosed, state.members.count < maximum else { return false }
            state.members[ObjectIdentifier(member)] = member
            return true
        }
    }

    func leave(_ member: Member) {
        let waiters = state.withLock { state in
            state.members[ObjectIdentifier(member)] = nil
            guard state.members.isEmpty else { return [UnsafeContinuation<Void, Never>]() }
            defer { state.waiters.removeAll() }
            return Array(state.waiters.values)
        }
        for waiter in waiters { waiter.resume() }
    }

    /// Lets nobody in any more; returns who is there.
    func close() -> [Member] {
        state.withLock { state in
            state.isClosed = true
            return Array(state.members.values)
        }
    }

    /// Waits until all have gone, for at most `patience`; false when some are still there.
    func areGone(within patience: Duration) async -> Bool {
        let number: UInt64 = state.withLock { state in
            state.nextWaiter += 1
            return state.nextWaiter
        }
        let timer = Task {
            // It throws when it is cancelled, since it is not needed any more.
            guard (try? await Task.sleep(for: patience)) != nil else { return }
            self.state.withLock { $0.waiters.removeValue(forKey: number) }?.resume()
        }
        await withUnsafeContinuation { continuation in
            let areGone = state.withLock { state in
                if state.members.isEmpty { return true }
                state.waiters[number] = continuation
                return false
            }
            if areGone { continuation.resume() }
        }
        timer.cancel()
        return state.withLock { $0.members.isEmpty }
    }
}
