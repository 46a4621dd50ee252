/// One side of a connection as its transport sees it.
///
/// A transport calls everything but `attach` on its event loop. After `wake` it comes back with `work`.
protocol Connection: AnyObject, Sendable {
    /// Says how the transport is told that there is work. `wake` is called from anywhere.
    func attach(wake: @escaping @Sendable () -> Void)
    /// After it, or after several in a row, the transport comes for `work` without being woken.
    func received(_ bytes: UnsafeRawBufferPointer, now: Int64)
    func wrote(_ count: Int, now: Int64)
    /// How many bytes that have arrived are worth a write of their own, when more have arrived with them.
    var partSize: Int { get }
    /// What there is to do, all timers considered.
    func work(now: Int64) -> TransportWork
    /// The transport is gone. Nothing else is called after it.
    func disconnected(_ status: RPCStatus)
}

/// Tasks that wait until they may send.
struct SendWaiters {
    private struct Waiter {
        var token: UInt64
        var stream: UInt32?
        var continuation: CheckedContinuation<Void, Never>
    }

    private var waiters: [Waiter] = []
    private var lastToken: UInt64 = 0

    var count: Int { waiters.count }

    mutating func newToken() -> UInt64 {
        lastToken += 1
        return lastToken
    }

    mutating func add(_ token: UInt64, stream: UInt32?, _ continuation: CheckedContinuation<Void, Never>) {
        waiters.append(Waiter(token: token, stream: stream, continuation: continuation))
    }

    /// Takes the waiter with this token out. The caller resumes what it gets, after its lock.
    mutating func take(_ token: UInt64) -> [CheckedContinuation<Void, Never>] {
        take { $0.token == token }
    }

    mutating func take(stream: UInt32) -> [CheckedContinuation<Void, Never>] {
        take { $0.stream == stream }
    }

    mutating func takeAll() -> [CheckedContinuation<Void, Never>] {
        take { _ in true }
    }

    private mutating func take(_ isWanted: (Waiter) -> Bool) -> [CheckedContinuation<Void, Never>] {
        if waiters.isEmpty { return [] }
        let taken = waiters.filter(isWanted)
        if !taken.isEmpty { waiters.removeAll(where: isWanted) }
        return taken.map(\.continuation)
    }
}
