/// Cuts what arrives into frames.
///
/// It holds at most the one payload that is arriving, in memory that grows with what has arrived and not with
/// what a header promises. A payload over the limit is reported at once and then skipped without being held.
struct FrameDecoder {
    enum Event: Equatable {
        case frame(FrameHeader, payload: [UInt8])
        /// The payload is larger than `limit` and will be skipped.
        case oversize(FrameHeader)
    }

    private enum State {
        /// So many bytes of the header have arrived.
        case header
        case payload(FrameHeader)
        /// So many bytes are still to be skipped.
        case skipping(Int)
    }

    /// The largest payload that is taken, in bytes.
    var limit: Int

    private var state = State.header
    private var header: [UInt8] = []
    private var payload: [UInt8] = []

    init(limit: Int) {
        self.limit = limit
        header.reserveCapacity(FrameHeader.size)
    }

    func limit(for type: FrameType) -> Int {
        type.isMessage ? limit : min(limit, FrameHeader.maxControlPayload)
    }

    /// How many bytes of an unfinished frame are held.
    var heldBytes: Int { payload.count + header.count }

    /// Takes bytes off the front of `input` until there is something to report; nil if all were taken before.
    ///
    /// `admits` is asked when a header within the limit has arrived (with 0 bytes) and before each part of its payload
    /// is held; if it says no, what is held is dropped, the rest skipped, and the frame is oversize.
    mutating func next(
        _ input: inout UnsafeRawBufferPointer, admits: (FrameHeader, Int) -> Bool = { _, _ in true }
    ) throws(FramingError) -> Event? {
        while true {
            switch state {
            case .header:
                guard let parsed = try takeHeader(&input) else { return nil }
                guard parsed.length <= limit(for: parsed.type), admits(parsed, 0) else {
                    state = .skipping(Int(parsed.length))
                    return .oversize(parsed)
                }
                state = .payload(parsed)
            case .payload(let header):
                let part = input.take(Int(header.length) - payload.count)
                guard part.isEmpty || admits(header, part.count) else {
                    state = .skipping(Int(header.length) - payload.count - part.count)
                    payload = []
                    return .oversize(header)
                }
                if part.count == header.length {
                    state = .header
                    return .frame(header, payload: [UInt8](part))
                }
                payload.append(contentsOf: part)
                guard payload.count == header.length else { return nil }
                state = .header
                defer { payload = [] }
                return .frame(header, payload: payload)
            case .skipping(let count):
                let skipped = input.take(count).count
                state = skipped == count ? .header : .skipping(count - skipped)
                guard skipped == count else { return nil }
            }
        }
    }

    /// The header that `input` begins with or completes; nil if it is not whole yet.
    private mutating func takeHeader(
        _ input: inout UnsafeRawBufferPointer
    ) throws(FramingError) -> FrameHeader? {
        if header.isEmpty, input.count >= FrameHeader.size {
            return try FrameHeader(parsing: input.take(FrameHeader.size))
        }
        header.append(contentsOf: input.take(FrameHeader.size - header.count))
        guard header.count == FrameHeader.size else { return nil }
        defer { header.removeAll(keepingCapacity: true) }
        // withUnsafeBytes cannot throw a typed error.
        let result = header.withUnsafeBytes { buffer in
            Result { () throws(FramingError) -> FrameHeader in try FrameHeader(parsing: buffer) }
        }
        return try result.get()
    }
}

extension UnsafeRawBufferPointer {
    /// Takes up to `count` bytes off the front.
    fileprivate mutating func take(_ count: Int) -> UnsafeRawBufferPointer {
        let taken = UnsafeRawBufferPointer(rebasing: prefix(count))
        self = UnsafeRawBufferPointer(rebasing: dropFirst(taken.count))
        return taken
    }
}
