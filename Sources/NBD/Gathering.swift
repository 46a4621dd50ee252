/// Decides when a client's next requests are left to gather before they are received.
///
/// A client with many reads on its way that is busy with the replies to earlier ones sends the next ones one by one, and each that
/// is received by itself takes the system calls of many. While it has replies to fetch it does not wait for us: where the thread
/// sleeps for a moment, from which the client also does not have to wake it, more come together. Where hardly any do, as the client
/// is slow, that costs more than it saves, and is left out for a while.
struct Gathering {
    /// What has come together.
    struct Batch {
        private(set) var requests = 0
        private(set) var reads = 0
        /// How much the reads ask for.
        private(set) var bytes = 0

        mutating func add(_ request: RequestHeader) {
            requests += 1
            // Of more than that nobody asks, however many come before anything is received.
            guard requests <= Gathering.many, request.type == NBDCommand.read.rawValue else { return }
            reads += 1
            bytes += Int(request.length)
        }
    }

    /// With so many at once they share enough, and with less than so many too little.
    private static let many = 12
    private static let few = 3

    /// To sleep and to be woken takes as long as a client needs for so many replies, in which its connection is not to run dry.
    private static let repliesAsleep = 14

    /// In nanoseconds: less than a client needs for a reply, and as long as is of use.
    private static let momentPerReply = 1000
    private static let longestMoment = 40_000

    /// How often in a row it was in vain, 10 at most; so many batches it is left out then, as a power of two.
    private var failures = 0
    private var leftOut = 0
    private var hasWaited = false

    /// A pause was made as long as it was to be: what comes next is what it has brought.
    mutating func hasPaused() { hasWaited = true }

    /// To be called with each batch that has requests.
    mutating func note(_ batch: Batch) {
        guard hasWaited else { return }
        failures = batch.requests < Self.few ? min(failures + 1, 10) : 0
        leftOut = failures > 0 ? 1 << failures : 0
        hasWaited = false
    }

    /// For how many nanoseconds to wait after `batch`, which has been answered, while what was sent and not fetched takes `unfetched`
    /// bytes; nil where somebody may wait for us. Replies without data, or with little of it, take more memory than they have bytes:
    /// how many they are is not known.
    mutating func moment(after batch: Batch, unfetched: @autoclosure () -> Int) -> UInt64? {
        guard (1..<Self.many).contains(batch.requests), batch.reads == batch.requests,
            batch.bytes >= batch.reads * 4096
        else { return nil }
        guard leftOut == 0 else {
            leftOut -= 1
            return nil
        }
        let replies = unfetched() / (batch.bytes / batch.reads) - Self.repliesAsleep
        return replies > 0 ? UInt64(min(replies * Self.momentPerReply, Self.longestMoment)) : nil
    }
}
