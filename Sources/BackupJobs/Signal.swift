internal import Synchronization

/// Wakes one waiter: raised while nobody waits, it is remembered once.
///
/// Whoever waits looks at the state of things again afterwards; a signal says that something has changed, not what.
final class Signal: Sendable {
    private enum State {
        case quiet, raised
        case awaited(UnsafeContinuation<Void, Never>)
    }

    private let state = Mutex(State.quiet)

    /// Wakes the waiter, or lets the next `raised` return at once. Callable from anywhere; never waits.
    func raise() {
        let waiter: UnsafeContinuation<Void, Never>? = state.withLock { state in
            if case .awaited(let continuation) = state {
                state = .quiet
                return continuation
            }
            state = .raised
            return nil
        }
        waiter?.resume()
    }

    /// Returns when the signal has been raised since the last return. One task at a time.
    func raised() async {
        await withUnsafeContinuation { continuation in
            let isRaised = state.withLock { state in
                switch state {
                case .quiet:
                    state = .awaited(continuation)
                    return false
                case .raised:
                    state = .quiet
                    return true
                case .awaited: preconditionFailure("a signal has one waiter")
                }
            }
            if isRaised { continuation.resume() }
        }
    }
}
