internal import CBlockIO
internal import Glibc
internal import Synchronization

/// Waits for sockets of a `ThreadsEngine`, all of them on one thread, which is started when it is first needed.
final class SocketPoller: Sendable {
    typealias Waiter = UnsafeContinuation<Int, Never>

    enum Direction {
        case reading, writing
    }

    /// At most one for each direction.
    private struct Waiters {
        var reading: Waiter?
        var writing: Waiter?
    }

    private struct State {
        var epoll: Int32 = -1
        /// Its signal ends the thread.
        var endDescriptor: Int32 = -1
        var thread: pthread_t?
        var waiters: [Int32: Waiters] = [:]
    }

    private let name: String
    private let state = Mutex(State())

    /// Starts nothing yet.
    init(name: String) { self.name = name }

    /// Resumes `waiter` with 0 when `socket` can be read from or written to, with 1 when it has ended; with a negated errno
    /// when that cannot be found out. The socket is not closed before; one waiter for each direction.
    func wait(for socket: Int32, _ direction: Direction, _ waiter: Waiter) {
        let failure: Int32? = state.withLock { state in
            if let failure = start(&state) { return failure }
            var waiters = state.waiters[socket] ?? Waiters()
            switch direction {
            case .reading:
                precondition(waiters.reading == nil, "one at a time reads from a socket")
                waiters.reading = waiter
            case .writing:
                precondition(waiters.writing == nil, "one at a time writes to a socket")
                waiters.writing = waiter
            }
            let result = watch(socket, waiters, state)
            guard result == 0 else { return result }
            state.waiters[socket] = waiters
            return nil
        }
        if let failure { waiter.resume(returning: Int(failure)) }
    }

    /// Ends the thread; nobody waits for a socket any more. Blocks.
    func end() {
        let (thread, epoll, endDescriptor) = state.withLock { state in
            precondition(state.waiters.isEmpty, "an engine ends when nobody waits for a socket")
            return (state.thread, state.epoll, state.endDescriptor)
        }
        if let thread {
            cblockio_eventfd_signal(endDescriptor)
            pthread_join(thread, nil)
        }
        if epoll >= 0 { _ = cblockio_close(epoll) }
        if endDescriptor >= 0 { _ = cblockio_close(endDescriptor) }
    }

    private func watch(_ socket: Int32, _ waiters: Waiters, _ state: State) -> Int32 {
        cblockio_epoll_watch(state.epoll, socket, waiters.reading != nil, waiters.writing != nil)
    }

    /// Why the thread cannot be started, a negated errno.
    private func start(_ state: inout State) -> Int32? {
        guard state.thread == nil else { return nil }
        if state.epoll < 0 { state.epoll = cblockio_epoll() }
        guard state.epoll >= 0 else { return state.epoll }
        if state.endDescriptor < 0 { state.endDescriptor = cblockio_eventfd() }
        guard state.endDescriptor >= 0 else { return state.endDescriptor }
        let result = cblockio_epoll_watch(state.epoll, state.endDescriptor, true, false)
        guard result == 0 else { return result }
        let (epoll, endDescriptor) = (state.epoll, state.endDescriptor)
        state.thread = startThread(named: name) { self.work(epoll, endDescriptor) }
        // Nothing that is to be tried again at once.
        return state.thread == nil ? -ENOMEM : nil
    }

    private func work(_ epoll: Int32, _ endDescriptor: Int32) {
        var events = [cblockio_event](repeating: cblockio_event(), count: 64)
        while true {
            let count = events.withUnsafeMutableBufferPointer {
                cblockio_epoll_wait(epoll, $0.baseAddress, Int32($0.count))
            }
            precondition(count >= 0, "epoll waits for what it was given (error \(-count))")
            for event in events[..<Int(count)] {
                if event.descriptor == endDescriptor { return }
                for waiter in take(event) { waiter.resume(returning: event.ended ? 1 : 0) }
            }
        }
    }

    /// Those for whom the event is; who waits for the other direction goes on waiting.
    private func take(_ event: cblockio_event) -> [Waiter] {
        state.withLock { state in
            guard var waiters = state.waiters[event.descriptor] else { return [] }
            var taken: [Waiter] = []
            if event.reads, let waiter = waiters.reading.take() { taken.append(waiter) }
            if event.writes, let waiter = waiters.writing.take() { taken.append(waiter) }
            guard waiters.reading != nil || waiters.writing != nil else {
                state.waiters[event.descriptor] = nil
                return taken
            }
            state.waiters[event.descriptor] = waiters
            if watch(event.descriptor, waiters, state) != 0 {
                // It cannot be watched any more: trying tells the waiter why.
                if let waiter = waiters.reading.take() { taken.append(waiter) }
                if let waiter = waiters.writing.take() { taken.append(waiter) }
                state.waiters[event.descriptor] = nil
            }
            return taken
        }
    }
}
