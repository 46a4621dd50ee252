internal import BlockIO
internal import Synchronization

/// The memory that holds the bytes of requests and replies, bounded for all clients together.
///
/// A client starts with little credit, one request at least, and earns more by what it takes and gives: those who never
/// read their replies hold what they got at first. Whatever its credit, a client gets beyond its first request at most
/// half of what is left, so that something is left for the next one; and who has nothing comes before those who have
/// something: in the order of asking, whatever its first request's size. While such a one waits nothing else is lent,
/// so that what others give back becomes enough for it.
///
/// Writes longer than `maximumPiece`, which must be whole before any of them is written, have memory of their own, in
/// the order of asking. (Longer reads travel in pieces.)
final class RequestMemory: Sendable {
    /// The longest request that is not called large, in bytes.
    static let maximumPiece = 2 << 20

    fileprivate static let firstCredit = 512 << 10
    fileprivate static let maximumCredit = 16 << 20

    /// For all servers of the process.
    static let shared = RequestMemory()

    /// What one client holds; kept by the memory's lock.
    final class Account: Sendable {
        fileprivate struct Holdings {
            var small = 0
            var large = 0
            /// How much it may hold besides its first request.
            var credit = RequestMemory.firstCredit
            var isClosed = false
        }

        // SAFETY: read and changed under the lock of the memory that it was made for.
        fileprivate nonisolated(unsafe) var holdings = Holdings()
    }

    private typealias Grant = (UnsafeContinuation<IOBuffer?, Never>, IOBuffer)

    private struct Waiter {
        let account: Account
        let size: Int
        let continuation: UnsafeContinuation<IOBuffer?, Never>
    }

    private struct State {
        var used = 0
        var usedLarge = 0
        /// Free buffers by the logarithm of their size.
        var free: [[IOBuffer]] = Array(repeating: [], count: 64)
        var freeBytes = 0
        var waiters: [Waiter] = []
        /// Who is told when somebody begins to wait while nobody did.
        var observers: [UInt64: @Sendable () -> Void] = [:]
        var lastObserver: UInt64 = 0
    }

    private let capacity: Int
    private let largeCapacity: Int
    private let maximumFree: Int
    private let state = Mutex(State())

    /// Bounds in bytes: for small requests, for large writes, and for what is kept when nobody uses it.
    init(capacity: Int = 64 << 20, largeCapacity: Int = 64 << 20, maximumFree: Int = 32 << 20) {
        precondition(largeCapacity >= NBDProtocol.maximumPayload, "a write of the greatest length fits")
        self.capacity = capacity
        self.largeCapacity = largeCapacity
        self.maximumFree = maximumFree
    }

    /// Somebody waits for memory that others hold: not only for what he holds himself.
    var isContended: Bool {
        state.withLock { state in state.waiters.contains { isWithinCredit($0.size, $0.account) } }
    }
    /// The bytes that are lent.
    var used: Int { state.withLock { $0.used + $0.usedLarge } }

    /// The requests that wait.
    var waiting: Int { state.withLock { $0.waiters.count } }

    /// A buffer of at least `count` bytes; nil when it is not to be had at once. Its contents are left over.
    func takeIfAvailable(_ count: Int, for account: Account) -> IOBuffer? {
        let size = Self.size(for: count)
        return state.withLock { state in grantToNewcomer(size, account, &state) }
    }

    /// A buffer of at least `count` bytes, when it is to be had; nil once the account was closed.
    func take(_ count: Int, for account: Account) async -> IOBuffer? {
        if let buffer = takeIfAvailable(count, for: account) { return buffer }
        return await withUnsafeContinuation { continuation in
            let size = Self.size(for: count)
            let (answer, observers): (IOBuffer??, [@Sendable () -> Void]) = state.withLock { state in
                if account.holdings.isClosed { return (.some(nil), []) }
                if let buffer = grantToNewcomer(size, account, &state) { return (buffer, []) }
                state.waiters.append(Waiter(account: account, size: size, continuation: continuation))
                return (nil, state.waiters.count == 1 ? Array(state.observers.values) : [])
            }
            if let answer { continuation.resume(returning: answer) }
            for tell in observers { tell() }
        }
    }

    /// Calls `body`, which does not wait, whenever somebody begins to wait while nobody does; until `stopTelling`.
    func whenSomebodyWaits(_ body: @escaping @Sendable () -> Void) -> UInt64 {
        state.withLock { state in
            state.lastObserver += 1
            state.observers[state.lastObserver] = body
            return state.lastObserver
        }
    }

    func stopTelling(_ observer: UInt64) { state.withLock { $0.observers[observer] = nil } }

    /// The bytes that are lent to `account`.
    func held(by account: Account) -> Int {
        state.withLock { _ in account.holdings.small + account.holdings.large }
    }

    /// Gives back what was taken for `account`.
    func give(_ buffer: IOBuffer, from account: Account) {
        let size = buffer.count
        let granted = state.withLock { state in
            if size > Self.maximumPiece {
                state.usedLarge -= size
                account.holdings.large -= size
            } else {
                state.used -= size
                account.holdings.small -= size
                account.holdings.credit = min(account.holdings.credit + size, Self.maximumCredit)
            }
            if state.freeBytes + size <= maximumFree {
                state.free[size.trailingZeroBitCount].append(buffer)
                state.freeBytes += size
            }
            return state.waiters.isEmpty ? [] : grantWaiting(&state)
        }
        for (continuation, buffer) in granted { continuation.resume(returning: buffer) }
    }

    /// Gives the account's owner nothing more, and ends its wait.
    func close(_ account: Account) {
        let (waiters, granted) = state.withLock { state in
            account.holdings.isClosed = true
            let waiters = state.waiters.filter { $0.account === account }
            guard !waiters.isEmpty else { return (waiters, [Grant]()) }
            state.waiters.removeAll { $0.account === account }
            // Others may have waited behind it for what is there.
            return (waiters, grantWaiting(&state))
        }
        for waiter in waiters { waiter.continuation.resume(returning: nil) }
        for (continuation, buffer) in granted { continuation.resume(returning: buffer) }
    }

    private static func size(for count: Int) -> Int {
        precondition(count <= NBDProtocol.maximumPayload, "no request is longer than what was announced")
        let least = max(count, IOBuffer.alignment)
        return 1 << (Int.bitWidth - (least - 1).leadingZeroBitCount)
    }

    /// What the client itself may have, whatever others hold.
    private func isWithinCredit(_ size: Int, _ account: Account) -> Bool {
        let holdings = account.holdings
        return size > Self.maximumPiece
            ? holdings.large + size <= largeCapacity / 2
            : holdings.small == 0 || holdings.small + size <= holdings.credit
    }

    /// The request of one that has nothing; large ones are in another memory.
    private func isFirst(_ size: Int, _ account: Account) -> Bool {
        size <= Self.maximumPiece && account.holdings.small == 0
    }

    /// Lends memory to one that has not waited yet, unless it would overtake somebody.
    private func grantToNewcomer(_ size: Int, _ account: Account, _ state: inout State) -> IOBuffer? {
        let isLarge = size > Self.maximumPiece
        let wouldOvertake = state.waiters.contains {
            isLarge
                ? $0.size > Self.maximumPiece && isWithinCredit($0.size, $0.account)
                : isFirst($0.size, $0.account)
        }
        return wouldOvertake ? nil : grant(size, account, &state)
    }

    private func grant(_ size: Int, _ account: Account, _ state: inout State) -> IOBuffer? {
        guard !account.holdings.isClosed, isWithinCredit(size, account) else { return nil }
        if size > Self.maximumPiece {
            guard state.usedLarge + size <= largeCapacity else { return nil }
            state.usedLarge += size
            account.holdings.large += size
        } else {
            let left = capacity - state.used
            guard account.holdings.small == 0 ? size <= left : account.holdings.small + size <= left / 2
            else { return nil }
            state.used += size
            account.holdings.small += size
        }
        if let buffer = state.free[size.trailingZeroBitCount].popLast() {
            state.freeBytes -= size
            return buffer
        }
        return IOBuffer(count: size)
    }

    /// Lends what is there to those who wait: first to those who have nothing, none of whom is overtaken.
    private func grantWaiting(_ state: inout State) -> [Grant] {
        var granted: [Grant] = []
        var isFirstPassed = false
        var isLargePassed = false
        for areFirst in [true, false] {
            var left: [Waiter] = []
            for waiter in state.waiters {
                let isLarge = waiter.size > Self.maximumPiece
                let isFirst = isFirst(waiter.size, waiter.account)
                // A large write is not overtaken by other large ones, or it might never find room.
                if isFirst == areFirst, !(isLarge ? isLargePassed : isFirstPassed),
                    let buffer = grant(waiter.size, waiter.account, &state)
                {
                    granted.append((waiter.continuation, buffer))
                    continue
                }
                left.append(waiter)
                if isFirst && areFirst { isFirstPassed = true }
                // Who waits for what he holds himself is in nobody's way.
                if isLarge, !areFirst, isWithinCredit(waiter.size, waiter.account) {
                    isLargePassed = true
                }
            }
            state.waiters = left
        }
        return granted
    }
}
