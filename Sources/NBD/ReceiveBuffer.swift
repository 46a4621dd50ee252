internal import BlockIO
internal import Glibc

/// What has arrived from a client and was not looked at yet: room for a short write, and for most of what a client with many
/// requests on its way has sent meanwhile. What is looked at together is answered together.
///
/// Used by one task at a time: the handshake's, then the transmission's.
final class ReceiveBuffer: Sendable {
    /// Two of the longest writes that are looked at here, with their headers, and what is missing of a page.
    private static let capacity = 132 << 10

    private let buffer = IOBuffer(count: ReceiveBuffer.capacity)
    // SAFETY: one task at a time uses the buffer; handing it over is an `await`.
    private nonisolated(unsafe) var positions = 0..<0

    /// What is there; valid until the next call.
    var bytes: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(buffer.bytes)[positions])
    }

    var count: Int { positions.count }

    /// The first `count` bytes, when they are all there; valid until the next call.
    func slice(_ count: Int) -> IOSlice? {
        positions.count < count
            ? nil : buffer[positions.lowerBound..<positions.lowerBound + count]
    }

    func drop(_ count: Int) { positions = positions.lowerBound + count..<positions.upperBound }

    /// Receives more behind what is there: a count, 0 at the end, or a negated errno.
    func receive(from socket: Socket, on engine: any IOEngine) async -> Int {
        if positions.isEmpty {
            positions = 0..<0
        } else if positions.lowerBound > 0 {
            // What is left is the piece of a header or of a short write.
            buffer.bytes.copyMemory(from: bytes)
            positions = 0..<positions.count
        }
        precondition(positions.upperBound < Self.capacity, "what is received is looked at")
        let room = UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[positions.upperBound...])
        while true {
            let count = await engine.receive(socket.descriptor, room, all: false)
            if count == Int(-EINTR) || count == Int(-EAGAIN) { continue }
            if count > 0 { positions = positions.lowerBound..<positions.upperBound + count }
            return count
        }
    }
}
