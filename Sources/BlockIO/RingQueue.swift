internal import CBlockIO
internal import Glibc

/// An io_uring and the callers that wait for its requests. One thread, the one that called `start`, uses it.
///
/// No more requests are in flight than completions fit, so that none is lost or delayed by the kernel; others wait here,
/// first come first served.
final class RingQueue {
    typealias Request = cblockio_request

    /// Who hears what came of a request.
    enum Caller {
        case task(UnsafeContinuation<Int, Never>)
        /// Called in a step of its own.
        case call((Int) -> Void)

        func hear(_ result: Int) {
            switch self {
            case .task(let continuation): continuation.resume(returning: result)
            case .call(let done): done(result)
            }
        }
    }

    /// The token of the request that other threads complete to wake this one.
    private static let wakeToken = UInt64.max

    private let ring: OpaquePointer
    private let limit: Int
    private var wakeDescriptor: Int32 = -1
    private var isWakeArmed = false
    /// Who waits for the request with the token of that index.
    private var callers: [Caller?]
    /// The file that the request with the token of that index holds, -1 for none.
    private var holders: [Int32]
    private var heldFiles: [Int32] = []
    /// Room for the kernel's view of a send, one for each token.
    private let messages: UnsafeMutablePointer<msghdr>
    private var freeTokens: [Int]
    /// Without a caller once they have been started.
    private var waiting: [(request: Request, caller: Caller?)] = []
    /// How many of `waiting` have been started.
    private var started = 0
    private var completions: [cblockio_completion]

    /// Makes the ring; `start` makes it usable. What is `held` stays open until all requests have ended, also those that outlive
    /// this process.
    init(depth: Int, holding held: Int32? = nil) throws(BlockError) {
        let entries = UInt32(min(max(depth, 8), 4096))
        var ring: OpaquePointer?
        let result = cblockio_ring_make(&ring, entries, entries * 4)
        guard result == 0, let ring else {
            throw BlockError("Couldn't make an io_uring", errno: -result)
        }
        if let held {
            let result = cblockio_ring_hold(ring, held)
            guard result == 0 else {
                cblockio_ring_free(ring)
                throw BlockError("Couldn't hold a file open with an io_uring", errno: -result)
            }
        }
        self.ring = ring
        // Some room is left for the request that wakes us.
        limit = Int(cblockio_ring_capacity(ring)) - 8
        callers = Array(repeating: nil, count: limit)
        holders = Array(repeating: -1, count: limit)
        messages = .allocate(capacity: limit)
        freeTokens = Array((0..<limit).reversed())
        completions = Array(repeating: cblockio_completion(), count: 256)
    }

    /// Requests that were added and have not been completed.
    var inFlight: Int { limit - freeTokens.count + waiting.count - started }

    /// True while a request is in flight that may hold the file's lock for long, or requests wait for places.
    func isHeld(_ descriptor: Int32) -> Bool { started != waiting.count || heldFiles.contains(descriptor) }

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

    /// Starts a request, or queues it behind others; `caller` hears its result.
    func add(_ request: Request, _ caller: Caller) {
        if started == waiting.count, let token = freeTokens.popLast() {
            callers[token] = caller
            start(request, token)
        } else {
            waiting.append((request, caller))
        }
    }

    private func start(_ request: Request, _ token: Int) {
        var request = request
        request.token = UInt64(token)
        request.message = messages + token
        holders[token] = request.holdsFile ? request.descriptor : -1
        if request.holdsFile { heldFiles.append(request.descriptor) }
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
        check(cblockio_ring_submit(ring, wait ? 1 : 0))
    }

    private func check(_ result: Int32) {
        switch -result {
        // A signal, or the kernel is short of memory or of room for completions: the next turn goes on, after it has
        // taken the completions that are there.
        case EINTR, EAGAIN, EBUSY, ..<1: break
        default: preconditionFailure("the kernel refused to work on a ring (error \(-result))")
        }
    }

    /// Submits what was added and returns when something has completed, or after so many nanoseconds; true when nothing has.
    func doze(nanoseconds: UInt64) -> Bool {
        let result = cblockio_ring_doze(ring, nanoseconds)
        if result == -ETIME { return true }
        check(result)
        return false
    }

    /// Submits what was added and looks for a completion, awake, for so many nanoseconds; false when none came.
    func watch(nanoseconds: UInt64) -> Bool {
        submit(wait: false)
        return cblockio_ring_watch(ring, nanoseconds) != 0
    }

    /// Tells the callers whose requests have completed, and starts requests that waited for their places.
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
                if holders[token] >= 0, let index = heldFiles.firstIndex(of: holders[token]) {
                    heldFiles.swapAt(index, heldFiles.count - 1)
                    heldFiles.removeLast()
                }
                caller?.hear(Int(completion.result))
            }
            if count < completions.count { break }
        }
        if !isWakeArmed { armWakeUp() }
        while started < waiting.count, let token = freeTokens.popLast() {
            callers[token] = waiting[started].caller.take()
            start(waiting[started].request, token)
            started += 1
        }
        if started == waiting.count || started >= 1024 {
            waiting.removeFirst(started)
            started = 0
        }
    }
}

extension cblockio_request {
    /// A write to the same file may have to wait for it, and for the disk. A file is held by each write, but by short ones mostly for
    /// no longer than it takes to hand another one over.
    fileprivate var holdsFile: Bool {
        switch operation {
        case CBLOCKIO_FSYNC, CBLOCKIO_FDATASYNC, CBLOCKIO_SYNC_FILE_RANGE, CBLOCKIO_FALLOCATE: true
        case CBLOCKIO_WRITE: length > InlineTransfers.maximumQuickWrite
        default: false
        }
    }
}
