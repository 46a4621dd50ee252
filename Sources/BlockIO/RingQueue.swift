internal import CBlockIO
internal import Glibc

/// An io_uring and the callers that wait for its requests. One thread, the one that called `start`, uses it.
///
/// No more requests are in flight than completions fit, so that none is lost or delayed by the kernel; others wait here,
/// first come first served.
final class RingQueue {
    typealias Request = cblockio_request
    typealias Caller = UnsafeContinuation<Int, Never>

    /// The token of the request that other threads complete to wake this one.
    private static let wakeToken = UInt64.max

    private let ring: OpaquePointer
    private let limit: Int
    private var wakeDescriptor: Int32 = -1
    private var isWakeArmed = false
    /// Who waits for the request with the token of that index.
    private var callers: [Caller?]
    /// Whether the request with the token of that index makes changes durable.
    private var isFlush: [Bool]
    private var flushesInFlight = 0
    /// Room for the kernel's view of a send, one for each token.
    private let messages: UnsafeMutablePointer<msghdr>
    private var freeTokens: [Int]
    private var waiting: [(request: Request, caller: Caller)] = []
    /// How many of `waiting` have been started.
    private var started = 0
    private var completions: [cblockio_completion]

    /// Makes the ring; `start` makes it usable.
    init(depth: Int) throws(BlockError) {
        let entries = UInt32(min(max(depth, 8), 4096))
        var ring: OpaquePointer?
        let result = cblockio_ring_make(&ring, entries, entries * 4)
        guard result == 0, let ring else {
            throw BlockError("Couldn't make an io_uring", errno: -result)
        }
        self.ring = ring
        // Some room is left for the request that wakes us.
        limit = Int(cblockio_ring_capacity(ring)) - 8
        callers = Array(repeating: nil, count: limit)
        isFlush = Array(repeating: false, count: limit)
        messages = .allocate(capacity: limit)
        freeTokens = Array((0..<limit).reversed())
        completions = Array(repeating: cblockio_completion(), count: 256)
    }

    /// Requests that were added and have not been completed.
    var inFlight: Int { limit - freeTokens.count + waiting.count - started }

    /// True when no request is in flight, or waits for a place, that makes changes durable.
    var flushesNothing: Bool { flushesInFlight == 0 && started == waiting.count }

    /// Makes the calling thread the ring's user; signals of `wakeDescriptor`, an eventfd, end its sleep.
    func start(wakeDescriptor: Int32) {
        let result = cblockio_ring_start(ring)
        precondition(result == 0, "a ring that was made can be started (error \(-result))")
        self.wakeDescriptor = wakeDescriptor
        armWakeUp()
    }

    func end() {
        precondition(inFlight == 0, "a ring ends when nothing is in flight")
        cblockio_ring_free(ring)
        messages.deallocate()
    }

    /// Starts a request, or queues it behind others; `caller` is resumed with its result.
    func add(_ request: Request, _ caller: Caller) {
        if started == waiting.count, let token = freeTokens.popLast() {
            start(request, caller, token)
        } else {
            waiting.append((request, caller))
        }
    }

    private func start(_ request: Request, _ caller: Caller, _ token: Int) {
        callers[token] = caller
        var request = request
        request.token = UInt64(token)
        request.message = messages + token
        isFlush[token] = request.operation.isFlush
        if isFlush[token] { flushesInFlight += 1 }
        prepare(&request)
    }

    private func prepare(_ request: inout Request) {
        while cblockio_ring_prepare(ring, &request) == 0 { submit(wait: false) }
    }

    private func armWakeUp() {
        var request = Request(
            operation: CBLOCKIO_WAKE, descriptor: wakeDescriptor, address: nil, message: nil, offset: 0,
            length: 8, flags: 0, token: Self.wakeToken)
        prepare(&request)
        isWakeArmed = true
    }

    /// Submits what was added; with `wait`, returns when something has completed.
    func submit(wait: Bool) {
        let result = cblockio_ring_submit(ring, wait ? 1 : 0)
        switch -result {
        // A signal, or the kernel is short of memory or of room for completions: the next turn goes on, after it has
        // taken the completions that are there.
        case EINTR, EAGAIN, EBUSY, ..<1: break
        default: preconditionFailure("the kernel refused to work on a ring (error \(-result))")
        }
    }

    /// Resumes the callers whose requests have completed, and starts requests that waited for their places.
    func resumeCompleted() {
        while true {
            let count = Int(
                completions.withUnsafeMutableBufferPointer { buffer in
                    cblockio_ring_reap(ring, buffer.baseAddress, UInt32(buffer.count))
                })
            for completion in completions[..<count] {
                guard completion.token != Self.wakeToken else {
                    isWakeArmed = false
                    continue
                }
                let token = Int(completion.token)
                let caller = callers[token].take()
                freeTokens.append(token)
                if isFlush[token] { flushesInFlight -= 1 }
                caller?.resume(returning: Int(completion.result))
            }
            if count < completions.count { break }
        }
        if !isWakeArmed { armWakeUp() }
        while started < waiting.count, let token = freeTokens.popLast() {
            let (request, caller) = waiting[started]
            started += 1
            start(request, caller, token)
        }
        if started == waiting.count || started >= 1024 {
            waiting.removeFirst(started)
            started = 0
        }
    }
}

extension cblockio_operation {
    fileprivate var isFlush: Bool {
        switch self {
        case CBLOCKIO_FSYNC, CBLOCKIO_FDATASYNC, CBLOCKIO_SYNC_FILE_RANGE: true
        default: false
        }
    }
}
