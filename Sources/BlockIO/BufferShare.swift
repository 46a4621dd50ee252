/// One user's part of a pool: at most three eighths of it, and half of what the others leave, so that nobody can have all,
/// however long he keeps what he has. One buffer is granted to whoever has none, while there is one.
package final class BufferShare: Sendable {
    private let pool: BufferPool
    // SAFETY: read and changed under the lock of the pool that it is a share of.
    nonisolated(unsafe) var held = 0

    init(of pool: BufferPool) { self.pool = pool }

    /// The size of each buffer in bytes.
    package var bufferSize: Int { pool.bufferSize }

    /// `BufferPool.prepare`. Blocks.
    package func prepare() { pool.prepare() }

    /// Takes a buffer, waiting until there is one that the share may have. Give it back with `give`. Throws `.cancelled`
    /// when the task is cancelled.
    package func take() async throws(BlockError) -> IOBuffer { try await pool.take(for: self) }

    /// Takes a buffer if one is to be had at once.
    package func takeIfAvailable() -> IOBuffer? { pool.takeIfAvailable(for: self) }

    /// Gives back a buffer that was taken from this share; nobody uses it any more.
    package func give(_ buffer: IOBuffer) { pool.give(buffer, from: self) }
}
