/// When a client's next requests are left to gather.
///
/// A client with many reads on its way that is busy with the replies to earlier ones sends the next ones one by one, and each that
/// is received by itself takes the system calls of many. While it has replies to fetch it does not wait for us: where the thread
/// sleeps for a moment, which it also does not have to be woken from by the client, more come together.
extension Transmission {
    /// With so many requests at once they share enough.
    private static let many = 12

    /// To sleep and to be woken takes as long as a client needs for so many replies, in which its connection is not to run dry.
    private static let repliesAsleep = 14

    /// In nanoseconds: less than any client needs for a reply, and as long as is of use.
    private static let momentPerReply = 500
    private static let longestMoment = 20_000

    /// For how many nanoseconds to wait, after `count` requests that came together and asked for `asked` bytes, while what was
    /// sent and not fetched takes `unfetched` bytes; nil where somebody may wait for us. Replies without data, or with little of it, take
    /// more memory than they have bytes: how many they are is not known.
    static func moment(after count: Int, asked: Int, unfetched: Int) -> UInt64? {
        guard (1..<many).contains(count), asked >= count * 4096 else { return nil }
        let replies = unfetched / (asked / count) - repliesAsleep
        return replies > 0 ? UInt64(min(replies * momentPerReply, longestMoment)) : nil
    }
}
