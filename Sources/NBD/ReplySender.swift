internal import BlockIO
internal import Glibc

/// Gathers replies and sends as many as fit with one call.
///
/// Used by one task at a time, on the engine of the transmission: by others than the sending one only while that waits: for
/// replies, and then in one step, or for its turn. What is ready and has not left is handed from one to the other.
final class ReplySender: Sendable {
    private static let maximumParts = 512
    private static let headBytes = 64 << 10

    // SAFETY: the addresses never change; what is there is used by one task at a time.
    private nonisolated(unsafe) let parts: UnsafeMutableBufferPointer<iovec>
    // SAFETY: as `parts`, what of them has not left yet.
    private nonisolated(unsafe) var unsent = 0..<0
    /// For the data of long reads; made when it is first of use, or never.
    private let pipe: EngineIsolated<PagePipe?>
    // SAFETY: as `parts`.
    private nonisolated(unsafe) var hasTriedPipe = false
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
        pipe = EngineIsolated(nil, engine: engine)
    }

    deinit { parts.deallocate() }

    /// Whether the data of a read of `range` can go through a pipe that there is.
    func holds(_ range: ByteRange) -> Bool {
        if !hasTriedPipe {
            hasTriedPipe = true
            pipe.value = PagePipe()
        }
        return pipe.value?.holds(range) ?? false
    }

    /// Puts the data of the next reply, which is one of pages, into the pipe, while nothing is ready to be sent; false when
    /// `device` cannot.
    func fill(with range: ByteRange, from device: any BlockDevice) -> Bool {
        guard let pipe = pipe.value else { return false }
        return device.fill(pipe, with: range)
    }

    /// Makes the first of `replies` ready to be sent; returns how many, which is none only when the first is one whose data
    /// `device` cannot put into the pipe. They stay as they are until they have left.
    func gather(_ replies: ArraySlice<Reply>, from device: any BlockDevice) -> Int {
        var count = 0
        var used = 0
        var taken = 0
        for index in replies.indices {
            guard used + Reply.maximumHead <= Self.headBytes, count + 2 <= Self.maximumParts else { break }
            let isPiped = replies[index].range != nil
            if let range = replies[index].range {
                guard filledPipe != nil || fill(with: range, from: device) else { break }
            }
            let room = UnsafeMutableRawBufferPointer(rebasing: heads.bytes[used...])
            let length = replies[index].encodeHead(into: room)
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
            if let payload = replies[index].payload, payload.count > 0 {
                parts[count] = iovec(iov_base: payload.bytes.baseAddress, iov_len: payload.count)
                count += 1
            }
            taken += 1
            // What follows it waits until the pipe is empty.
            if isPiped { break }
        }
        unsent = 0..<count
        return taken
    }

    /// Sends in this step what the socket has room for; true when that was all that is ready. An error is met again by `send`.
    func sendAtOnce() -> Bool {
        if !unsent.isEmpty, let sent = engine.sendAtOnce(socket.descriptor, rest), sent > 0 { drop(sent) }
        guard unsent.isEmpty else { return false }
        while let pipe = filledPipe {
            guard let sent = engine.sendAtOnce(socket.descriptor, from: pipe), sent > 0 else { return false }
            progressed()
        }
        return true
    }

    /// How much is ready and has not left, in bytes.
    var bytesToSend: Int { rest.reduce(pipe.value?.count ?? 0) { $0 + $1.iov_len } }

    /// Sends what is ready; false when the client cannot be reached any more.
    func send() async -> Bool {
        while !unsent.isEmpty {
            let sent = await engine.send(socket.descriptor, rest)
            if sent == Int(-EINTR) || sent == Int(-EAGAIN) { continue }
            guard sent > 0 else { return false }
            drop(sent)
        }
        while let pipe = filledPipe {
            if let sent = engine.sendAtOnce(socket.descriptor, from: pipe) {
                guard sent > 0 else { return false }
                progressed()
            } else {
                let ready = await engine.waitForRoom(socket.descriptor)
                guard ready == 0 || ready == Int(-EINTR) else { return false }
            }
        }
        return true
    }

    /// The pipe, while something is in it that follows `unsent`.
    private var filledPipe: PagePipe? {
        guard let pipe = pipe.value, pipe.count > 0 else { return nil }
        return pipe
    }

    /// Sends bytes as they are; false when the client cannot be reached any more.
    func send(_ slice: IOSlice) async -> Bool {
        guard slice.count > 0 else { return true }
        parts[0] = iovec(iov_base: slice.bytes.baseAddress, iov_len: slice.count)
        unsent = 0..<1
        return await send()
    }

    private var rest: UnsafeMutableBufferPointer<iovec> {
        UnsafeMutableBufferPointer(rebasing: parts[unsent])
    }

    /// So many bytes have left; sends come back short.
    private func drop(_ bytes: Int) {
        progressed()
        var (left, first) = (bytes, unsent.lowerBound)
        while first < unsent.upperBound, left >= parts[first].iov_len {
            left -= parts[first].iov_len
            first += 1
        }
        if left > 0 {
            parts[first].iov_base = parts[first].iov_base.map { $0 + left }
            parts[first].iov_len -= left
        }
        unsent = first..<unsent.upperBound
    }
}
