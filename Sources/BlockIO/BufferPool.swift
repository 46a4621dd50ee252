internal import Synchronization

/// A bounded stock of buffers that all jobs of an agent share.
///
/// Memory is taken from the system, or from memory that is shared with other processes, when it is first needed and used
/// again afterwards; it never exceeds the capacity, whichever engines the buffers travel over. Who waits for a buffer is served in the order of asking.
///
/// A buffer on its way to a target that hangs does not come back. So each job has a `share`: it may hold at most three
/// eighths of all, and half of what the others leave, so that something is left for the next one. Who holds as much as he
/// may is overtaken.
package final class BufferPool: Sendable {
    private struct State {
        var free: [IOBuffer] = []
        /// How many are lent; those and the free ones are all there are.
        var lent = 0
        /// How many there are.
        var made = 0
        /// How many have a place in large pages, or were refused one.
        var prepared = 0
        /// Nobody has taken one since `rest`.
        var isResting = false
        var waiters: [Waiter] = []
        var nextWaiter: UInt64 = 0
    }

    private struct Waiter {
        let number: UInt64
        /// nil: who takes from the pool itself, and may have all of it.
        let share: BufferShare?
        let continuation: UnsafeContinuation<IOBuffer?, Never>
    }

    /// The size of each buffer in bytes.
    package let bufferSize: Int
    /// How many buffers there can be.
    package let maximumCount: Int
    /// How many buffers one share may hold.
    private var largestShare: Int { max(1, maximumCount * 3 / 8) }
    /// Where the buffers lie; nil: each by itself.
    package let memory: SharedMemory?

    private let state = Mutex(State())

    /// Makes an empty stock of at most `capacity` bytes in buffers of `bufferSize`; at least one.
    package init(capacity: Int = BufferPool.capacity, bufferSize: Int = 1 << 20) {
        precondition(bufferSize > 0, "a buffer has bytes")
        self.bufferSize = bufferSize
        maximumCount = max(1, capacity / bufferSize)
        memory = nil
    }

    /// Makes an empty stock of buffers of `bufferSize` in `memory`, which nobody else uses; at least one has room there.
    package init(in memory: SharedMemory, bufferSize: Int = BufferPool.bufferSize) {
        precondition(
            bufferSize > 0 && bufferSize.isMultiple(of: IOBuffer.alignment) && bufferSize <= memory.count,
            "a buffer is aligned and has bytes")
        self.bufferSize = bufferSize
        maximumCount = memory.count / bufferSize
        self.memory = memory
    }

    /// How many bytes the buffers of an agent's jobs have together, by default.
    package static let capacity = 32 << 20
    /// The size of each of them in shared memory, by default.
    package static let bufferSize = 2 << 20

    /// Makes a share for one more user, who holds nothing yet.
    package func share() -> BufferShare { BufferShare(of: self) }

    /// Takes a buffer, waiting for one where all are lent. It must be given back with `give`; `withBuffer` does that by
    /// itself. Its contents are left over from earlier uses. Throws `.cancelled` when the task is cancelled.
    package func take() async throws(BlockError) -> IOBuffer { try await take(for: nil) }

    /// Takes a buffer if one is to be had at once.
    package func takeIfAvailable() -> IOBuffer? { takeIfAvailable(for: nil) }

    /// Gives back a buffer that was taken from this pool; nobody uses it any more.
    package func give(_ buffer: IOBuffer) { give(buffer, from: nil) }

    /// Lends a buffer for the duration of `body`. Throws what `body` throws, or `.cancelled` while waiting.
    package func withBuffer<Result>(
        _ body: (IOBuffer) async throws(BlockError) -> Result
    ) async throws(BlockError) -> Result {
        let buffer = try await take()
        defer { give(buffer) }
        return try await body(buffer)
    }

    /// Gives the memory of free buffers back to the system where it is shared, and of those that are lent as they come back;
    /// until somebody takes one. For when nobody is expected to.
    package func rest() {
        state.withLock { state in
            state.isResting = true
            for buffer in state.free { buffer.giveBack() }
            forgetIfIdle(&state)
        }
    }

    /// Puts buffers that are not made yet, as many as one share may have, into large pages where they lie in shared memory. To be
    /// called before a job copies. Blocks: the system looks for memory, and clears it.
    package func prepare() {
        guard let memory else { return }
        let places = state.withLock { state in
            let first = max(state.prepared, state.made)
            let end = max(first, min(maximumCount, state.made + largestShare))
            state.prepared = end
            return first..<end
        }
        for place in places where (place * bufferSize).isMultiple(of: SharedMemory.largePage) {
            memory.useLargePage(at: place * bufferSize)
        }
    }

    // MARK: For a share, or for nobody's

    func take(for share: BufferShare?) async throws(BlockError) -> IOBuffer {
        let number = state.withLock { state in
            state.nextWaiter += 1
            return state.nextWaiter
        }
        let buffer = await withTaskCancellationHandler {
            await withUnsafeContinuation { continuation in
                let answer: IOBuffer?? = state.withLock { state in
                    if Task.isCancelled { return .some(nil) }
                    if let buffer = grant(to: share, &state) { return buffer }
                    state.waiters.append(Waiter(number: number, share: share, continuation: continuation))
                    return nil
                }
                if let answer { continuation.resume(returning: answer) }
            }
        } onCancel: {
            let waiter = state.withLock { state in
                state.waiters.firstIndex { $0.number == number }.map { state.waiters.remove(at: $0) }
            }
            waiter?.continuation.resume(returning: nil)
        }
        guard let buffer else {
            throw BlockError(.cancelled, "Gave up waiting for a buffer: the operation was cancelled")
        }
        return buffer
    }

    func takeIfAvailable(for share: BufferShare?) -> IOBuffer? {
        state.withLock { state in grant(to: share, &state) }
    }

    func give(_ buffer: IOBuffer, from share: BufferShare?) {
        precondition(buffer.count == bufferSize, "a buffer goes back to the pool it came from")
        let served = state.withLock { state in
            precondition(state.lent > 0 && share?.held != 0, "a buffer is given back once, by who has it")
            state.lent -= 1
            share?.held -= 1
            if state.isResting { buffer.giveBack() }
            state.free.append(buffer)
            if state.isResting { forgetIfIdle(&state) }
            return serve(&state)
        }
        for (waiter, buffer) in served { waiter.continuation.resume(returning: buffer) }
    }

    /// Serves who waits, in order, and passes over those who hold as much as they may. One buffer that comes back raises
    /// what the others may hold, so it can be more than one who is served.
    private func serve(_ state: inout State) -> [(Waiter, IOBuffer)] {
        var served: [(Waiter, IOBuffer)] = []
        var next = 0
        while next < state.waiters.count, state.lent < maximumCount {
            if let buffer = grant(to: state.waiters[next].share, &state) {
                served.append((state.waiters.remove(at: next), buffer))
            } else {
                next += 1
            }
        }
        return served
    }

    /// A buffer, if there is one and the share may have it. Nobody who waits is overtaken by this but who may have none:
    /// all others were served when the last buffer came back.
    private func grant(to share: BufferShare?, _ state: inout State) -> IOBuffer? {
        guard state.lent < maximumCount else { return nil }
        if let share {
            let others = state.lent - share.held
            guard share.held < max(1, min(largestShare, (maximumCount - others) / 2)) else { return nil }
            share.held += 1
        }
        state.lent += 1
        state.isResting = false
        return state.free.popLast() ?? make(&state)
    }

    private func make(_ state: inout State) -> IOBuffer {
        defer { state.made += 1 }
        guard let memory else { return IOBuffer(count: bufferSize) }
        return IOBuffer(in: memory, at: state.made * bufferSize, count: bufferSize)
    }

    /// What is made again is made in large pages again.
    private func forgetIfIdle(_ state: inout State) {
        guard let memory, state.lent == 0 else { return }
        // A large page may be more than the buffers in it.
        memory.giveBack(0..<memory.count)
        state.free.removeAll()
        state.made = 0
        state.prepared = 0
    }
}
