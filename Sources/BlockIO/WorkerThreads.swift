internal import CBlockIO
internal import Glibc
internal import Synchronization

/// A few threads that make blocking calls, started when they are needed and kept until the end.
///
/// Work is taken in the order in which it came. The queue has no bound of its own: it holds at most one entry for each
/// request in flight, and whoever makes requests bounds those.
final class WorkerThreads: Sendable {
    private struct State {
        var work: [@Sendable () -> Void] = []
        /// How many entries of `work` were taken; they are removed in bulk.
        var taken = 0
        var threads: [pthread_t] = []
        var idle = 0
        var isEnding = false
    }

    private let name: String
    private let maximum: Int
    private let state = Mutex(State())
    private let wakeUps = Semaphore()

    /// Starts nothing yet; `maximum` is the number of calls that run at the same time.
    init(name: String, maximum: Int) {
        self.name = name
        self.maximum = maximum
    }

    /// Runs `body` on one of the threads.
    func run(_ body: @escaping @Sendable () -> Void) {
        state.withLock { state in
            precondition(!state.isEnding, "no work is given to threads that were told to end")
            state.work.append(body)
            let waiting = state.work.count - state.taken
            if waiting > state.idle && state.threads.count < maximum {
                // Where no thread can be had, those that exist do the work; without any nothing can go on.
                if let thread = startThread(named: name, { self.work() }) {
                    state.threads.append(thread)
                } else {
                    precondition(!state.threads.isEmpty, "the system gives no thread for blocking calls")
                }
            }
        }
        wakeUps.signal()
    }

    /// Ends the threads after the work that was given to them, and waits for them. Blocks.
    func end() {
        let threads = state.withLock { state in
            state.isEnding = true
            return state.threads
        }
        for _ in threads { wakeUps.signal() }
        for thread in threads { pthread_join(thread, nil) }
    }

    private func work() {
        while true {
            state.withLock { $0.idle += 1 }
            wakeUps.wait()
            let body: (@Sendable () -> Void)? = state.withLock { state in
                state.idle -= 1
                guard state.taken < state.work.count else { return nil }
                let body = state.work[state.taken]
                state.work[state.taken] = {}
                state.taken += 1
                if state.taken == state.work.count {
                    state.work.removeAll(keepingCapacity: true)
                    state.taken = 0
                } else if state.taken > 1024 {
                    state.work.removeFirst(state.taken)
                    state.taken = 0
                }
                return body
            }
            // One signal came for each piece of work, so a wake-up without any is the one that says "end".
            guard let body else { return }
            body()
        }
    }
}

/// A counting semaphore, for threads of ours that may block; never for Swift's pool.
final class Semaphore: Sendable {
    // SAFETY: the address is constant and the C library's calls on it are thread-safe; it is freed when nobody has a
    // reference to call through.
    private nonisolated(unsafe) let semaphore: UnsafeMutablePointer<sem_t>

    init() {
        semaphore = .allocate(capacity: 1)
        sem_init(semaphore, 0, 0)
    }

    deinit {
        sem_destroy(semaphore)
        semaphore.deallocate()
    }

    func signal() { sem_post(semaphore) }

    func wait() {
        while sem_wait(semaphore) != 0 {}
    }

    /// False when no signal came within `limit`.
    func wait(atMost limit: Duration) -> Bool {
        var deadline = timespec()
        clock_gettime(CLOCK_REALTIME, &deadline)
        let (seconds, attoseconds) = limit.components
        let nanoseconds = Int64(deadline.tv_nsec) + attoseconds / 1_000_000_000
        deadline.tv_sec += Int(seconds + nanoseconds / 1_000_000_000)
        deadline.tv_nsec = Int(nanoseconds % 1_000_000_000)
        while sem_timedwait(semaphore, &deadline) != 0 {
            if errno != EINTR { return false }
        }
        return true
    }
}

/// The thread that runs this.
package enum OwnThread {
    /// Lets others that wait for this thread's processor run first.
    package static func giveWay() { _ = sched_yield() }
}

/// Starts a thread of that name (at most 15 bytes are kept) which runs `body`; nil when the system has none to give.
func startThread(named name: String, _ body: @escaping @Sendable () -> Void) -> pthread_t? {
    final class Start {
        let name: String
        let body: @Sendable () -> Void
        init(_ name: String, _ body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }
    let start = Unmanaged.passRetained(Start(name, body))
    var thread = pthread_t()
    let result = pthread_create(
        &thread, nil,
        { argument in
            guard let argument else { return nil }
            let start = Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
            cblockio_name_thread(start.name)
            cblockio_block_pipe_signal()
            start.body()
            return nil
        }, start.toOpaque())
    guard result == 0 else {
        start.release()
        return nil
    }
    return thread
}
