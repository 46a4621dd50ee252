internal import BlockIO
internal import Glibc

/// Gathers replies and sends as many as fit with one call.
///
/// Used by one task at a time, on the engine of the transmission.
final class ReplySender: Sendable {
    private static let maximumParts = 512
    private static let headBytes = 64 << 10

    // SAFETY: the addresses never change; what is there is used by one task at a time.
    private nonisolated(unsafe) let parts: UnsafeMutableBufferPointer<iovec>
    private let heads = IOBuffer(count: ReplySender.headBytes)
    private let socket: Socket
    private let engine: any IOEngine
    /// Called when bytes have left.
    private let progressed: @Sendable () -> Void

    init(_ socket: Socket, _ engine: any IOEngine, progressed: @escaping @Sendable () -> Void) {
        self.socket = socket
        self.engine = engine
        self.progressed = progressed
        parts = .allocate(capacity: Self.maximumParts)
    }

    deinit { parts.deallocate() }

    /// Sends the first of `replies`, at least one; returns how many, or nil when the client cannot be reached any more.
    func send(_ replies: ArraySlice<Reply>) async -> Int? {
        var count = 0
        var used = 0
        var taken = 0
        for reply in replies {
            guard used + Reply.maximumHead <= Self.headBytes, count + 2 <= Self.maximumParts else { break }
            let room = UnsafeMutableRawBufferPointer(rebasing: heads.bytes[used...])
            let length = reply.encodeHead(into: room)
            if count > 0,
                parts[count - 1].iov_base
                    == heads.bytes.baseAddress.map({ $0 + used - parts[count - 1].iov_len })
            {
                // Heads without payload between them are one piece.
                parts[count - 1].iov_len += length
            } else {
                parts[count] = iovec(iov_base: room.baseAddress, iov_len: length)
                count += 1
            }
            used += length
            if let payload = reply.payload, payload.count > 0 {
                parts[count] = iovec(iov_base: payload.bytes.baseAddress, iov_len: payload.count)
                count += 1
            }
            taken += 1
        }
        return await sendParts(count) ? taken : nil
    }

    /// Sends bytes as they are; false when the client cannot be reached any more.
    func send(_ slice: IOSlice) async -> Bool {
        guard slice.count > 0 else { return true }
        parts[0] = iovec(iov_base: slice.bytes.baseAddress, iov_len: slice.count)
        return await sendParts(1)
    }

    private func sendParts(_ count: Int) async -> Bool {
        var first = 0
        while first < count {
            let rest = UnsafeMutableBufferPointer(rebasing: parts[first..<count])
            var sent = await engine.send(socket.descriptor, rest)
            if sent == Int(-EINTR) || sent == Int(-EAGAIN) { continue }
            guard sent > 0 else { return false }
            progressed()
            // Sends come back short.
            while first < count, sent >= parts[first].iov_len {
                sent -= parts[first].iov_len
                first += 1
            }
            if sent > 0 {
                parts[first].iov_base = parts[first].iov_base.map { $0 + sent }
                parts[first].iov_len -= sent
            }
        }
        return true
    }
}
