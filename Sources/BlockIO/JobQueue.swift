internal import Synchronization

/// What an engine's thread still has to do: Swift jobs, and calls, of other threads or for the end of a turn.
///
/// Jobs that are enqueued on the engine's own thread go to a plain array, others behind a mutex; the engine is woken
/// only when it said that it sleeps.
final class JobQueue: Sendable {
    enum Entry {
        case job(UnownedJob)
        case call(@Sendable () -> Void)
    }

    private struct Remote {
        var entries: [Entry] = []
        var isAsleep = false
        var isClosed = false
    }

    private let remote = Mutex(Remote())
    // SAFETY: touched by the engine's thread only; `isCurrent` is asked before every use.
    private nonisolated(unsafe) var local: [Entry] = []

    /// Who serves this queue, which lives as long as its thread serves it.
    var owner: EngineOwner { EngineOwner(self) }

    /// True on the thread that called `becomeCurrent`.
    var isCurrent: Bool { owner.isCurrent }

    /// Makes the calling thread the one that serves this queue.
    func becomeCurrent() { owner.becomeCurrent() }

    /// Adds an entry; true when the engine's thread sleeps and must be woken.
    func add(_ entry: Entry) -> Bool {
        if isCurrent {
            local.append(entry)
            return false
        }
        return remote.withLock { remote in
            precondition(!remote.isClosed, "nothing is enqueued on an engine that was shut down")
            remote.entries.append(entry)
            defer { remote.isAsleep = false }
            return remote.isAsleep
        }
    }

    /// Takes everything that is there now, in order; what is added while it runs waits for the next time, so that
    /// completions get their turn in between. `batch` is handed in empty so that its memory is used again.
    func take(into batch: inout [Entry]) {
        swap(&batch, &local)
        remote.withLock { remote in
            if batch.isEmpty {
                swap(&batch, &remote.entries)
            } else {
                batch.append(contentsOf: remote.entries)
                remote.entries.removeAll(keepingCapacity: true)
            }
        }
    }

    /// Notes that the engine's thread is about to sleep; false when there is something to do.
    func fallAsleep() -> Bool {
        guard local.isEmpty else { return false }
        return remote.withLock { remote in
            guard remote.entries.isEmpty else { return false }
            remote.isAsleep = true
            return true
        }
    }

    /// Notes that the engine's thread woke by itself.
    func wake() { remote.withLock { $0.isAsleep = false } }

    var isLocalEmpty: Bool { local.isEmpty }

    /// Refuses everything from now on, unless something is still to be done.
    func close() -> Bool {
        guard local.isEmpty else { return false }
        return remote.withLock { remote in
            guard remote.entries.isEmpty else { return false }
            remote.isClosed = true
            return true
        }
    }
}
