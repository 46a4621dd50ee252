/// How far a job is, as a line of a log.
struct ProgressLine {
    private let story: JobStory
    private let rate: Int64?

    /// - Parameter rate: bytes a second; nil while it is not known.
    init(_ story: JobStory, rate: Int64?) {
        self.story = story
        self.rate = rate
    }

    /// `vm1: 12%, 2.40 GiB of 20.0 GiB, 120 MiB/s, 2:30 left`.
    var text: String {
        let bar = ProgressBar(name: story.id, current: story.current, total: story.total, rate: rate)
        var parts = [
            "\(ColumnText.printable(story.id)): \(bar.percent)%",
            "\(ByteSize.text(story.current)) of \(ByteSize.text(story.total))",
        ]
        if let note = story.note {
            parts.append(note)
        } else {
            if let rate { parts.append(ByteSize.rate(rate)) }
            if let left = bar.secondsLeft { parts.append("\(TimeText.clock(left)) left") }
        }
        return parts.joined(separator: ", ")
    }
}
