internal import BlockIO

/// Memory for old content on its way to staging: small buffers for small requests, many at once, and a few large ones.
final class SaveBuffers: Sendable {
    /// The most that is saved as one piece, in bytes.
    static let pieceSize: UInt64 = 256 << 10

    private let small = BufferPool(capacity: 1 << 20, bufferSize: 16 << 10)
    private let large = BufferPool(capacity: 2 << 20, bufferSize: Int(SaveBuffers.pieceSize))

    /// Lends a buffer of at least `bytes`, at most a piece.
    func take(_ bytes: UInt64) async -> IOBuffer {
        let pool = pool(bytes)
        if let buffer = pool.takeIfAvailable() { return buffer }
        while true {
            // Only a cancelled task is refused, and saves are not cancelled.
            if let buffer = try? await pool.take() { return buffer }
        }
    }

    /// The same if one is there, and the request is short.
    func takeIfAvailable(_ bytes: UInt64) -> IOBuffer? {
        bytes <= UInt64(small.bufferSize) ? small.takeIfAvailable() : nil
    }

    func give(_ buffer: IOBuffer) { pool(UInt64(buffer.count)).give(buffer) }

    private func pool(_ bytes: UInt64) -> BufferPool { bytes <= UInt64(small.bufferSize) ? small : large }
}
