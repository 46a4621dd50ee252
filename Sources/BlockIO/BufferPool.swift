internal import Synchronization

/// A bounded stock of buffers that all jobs of an agent share.
///
/// Memory is taken from the system when it is first needed and used again afterwards; it never exceeds the capacity,
/// whichever engines the buffers travel over. Who waits for a buffer is served in the order of asking.
package final class BufferPool: Sendable {
    private struct State {
        var free: [IOBuffer] = []
        var allocated = 0
        var waiters: [Waiter] = []
        var nextWaiter: UInt64 = 0
    }

    private struct Waiter {
        let number: UInt64
        let continuation: UnsafeContinuation<IOBuffer?, Never>
    }

    /// The size of each buffer in bytes.
    package let bufferSize: Int
    /// How many buffers there can be.
    package let maximumCount: Int

    private let state = Mutex(State())

    /// Makes an empty stock of at most `capacity` bytes in buffers of `bufferSize`; at least one.
    package init(capacity: Int = 32 << 20, bufferSize: Int = 1 << 20) {
        precondition(bufferSize > 0, "a buffer has bytes")
        self.bufferSize = bufferSize
        maximumCount = max(1, capacity / bufferSize)
    }

    /// Takes a buffer, waiting for one where all are lent. It must be given back with `give`; `withBuffer` does that by
    /// itself. Its contents are left over from earlier uses. Throws `.cancelled` when the task is cancelled.
    package func take() async throws(BlockError) -> IOBuffer {
        let number = state.withLock { state in
            state.nextWaiter += 1
            return state.nextWaiter
        }
        let buffer = await withTaskCancellationHandler {
            await withUnsafeContinuation { continuation in
                let answer: IOBuffer?? = state.withLock { state in
                    if Task.isCancelled { return .some(nil) }
                    if let buffer = takeFree(&state) { return buffer }
                    state.waiters.append(Waiter(number: number, continuation: continuation))
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

    /// Takes a buffer if one is to be had at once and nobody waits for it.
    package func takeIfAvailable() -> IOBuffer? {
        state.withLock { state in takeFree(&state) }
    }

    /// Gives back a buffer that was taken from this pool; nobody uses it any more.
    package func give(_ buffer: IOBuffer) {
        precondition(buffer.count == bufferSize, "a buffer goes back to the pool it came from")
        let waiter: Waiter? = state.withLock { state in
            guard state.waiters.isEmpty else { return state.waiters.removeFirst() }
            state.free.append(buffer)
            precondition(state.free.count <= state.allocated, "a buffer is given back once")
            return nil
        }
        waiter?.continuation.resume(returning: buffer)
    }

    /// Lends a buffer for the duration of `body`. Throws what `body` throws, or `.cancelled` while waiting.
    package func withBuffer<Result>(
        _ body: (IOBuffer) async throws(BlockError) -> Result
    ) async throws(BlockError) -> Result {
        let buffer = try await take()
        defer { give(buffer) }
        return try await body(buffer)
    }

    private func takeFree(_ state: inout State) -> IOBuffer? {
        guard state.waiters.isEmpty else { return nil }
        if let buffer = state.free.popLast() { return buffer }
        guard state.allocated < maximumCount else { return nil }
        state.allocated += 1
        return IOBuffer(count: bufferSize)
    }
}
