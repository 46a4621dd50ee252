/// One line that shows how far a job is, fitted to the terminal.
///
/// From wide to narrow the parts go in this order: bar, bytes, rate, time left, name; the percentage stays. Each part has
/// a width of its own that does not depend on its value, so that nothing jumps about.
struct ProgressBar: Hashable {
    /// The job's id.
    var name: String
    /// Bytes done, of `total`.
    var current: Int64
    var total: Int64
    /// Bytes a second; nil while it is not known.
    var rate: Int64?
    /// What is shown instead of rate and time left when the job does not run: `paused`.
    var note: String?

    /// The line, at most `width` columns wide, of printing characters only. Empty if not even the percentage fits.
    func line(width: Int, unicode: Bool) -> String {
        var parts = Parts(self)
        for cut in parts.cuts {
            let rest = width - parts.width
            // A bar under eight cells says less than the bytes beside it.
            if parts.hasBar ? rest >= 8 + 1 : rest >= 0 { break }
            cut(&parts)
        }
        let rest = width - parts.width
        guard rest >= 0 else { return "" }
        // A bar over sixty cells shows no more and is far to read over.
        let bar = parts.hasBar ? Self.bar(fraction, cells: min(rest - 1, 60), unicode: unicode) : nil
        return parts.joined(bar: bar)
    }

    /// How much is done, from 0 to 1. Nothing to do is done.
    var fraction: Double {
        guard total > 0 else { return 1 }
        return min(1, max(0, Double(current) / Double(total)))
    }

    /// Whole percent, cut off: 100 only when all is done.
    var percent: Int { current >= total ? 100 : min(99, Int(fraction * 100)) }

    /// Seconds left at this rate; nil if that cannot be said.
    var secondsLeft: Int64? {
        guard let rate, rate > 0 else { return nil }
        let (left, overflow) = total.subtractingReportingOverflow(current)
        return (overflow ? .max : max(0, left)) / rate
    }

    private static func bar(_ fraction: Double, cells: Int, unicode: Bool) -> String {
        guard unicode else {
            let inside = cells - 2
            let full = Int(fraction * Double(inside))
            let head = full < inside ? ">" : ""
            let empty = String(repeating: " ", count: inside - full - head.count)
            return "[" + String(repeating: "=", count: full) + head + empty + "]"
        }
        let eighths = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"]
        let filled = Int(fraction * Double(cells * 8))
        let text = String(repeating: "█", count: filled / 8) + eighths[filled % 8]
        return text + String(repeating: "░", count: cells - filled / 8 - (filled % 8 == 0 ? 0 : 1))
    }
}

/// The parts of the line that are shown, all of fixed width but the name.
private struct Parts {
    private var name: String
    private let percent: String
    private var bytes: String
    private var pace: String
    private var left: String
    private(set) var hasBar = true
    private let isNote: Bool

    init(_ bar: ProgressBar) {
        name = ColumnText.cut(ColumnText.printable(bar.name), to: 20)
        isNote = bar.note != nil
        percent = ColumnText.padded("\(bar.percent)%", to: 4, right: true)
        let total = ByteSize.text(bar.total)
        bytes = ColumnText.padded(ByteSize.text(bar.current), to: 8, right: true) + " of " + total
        let rate = bar.rate.map(ByteSize.rate) ?? ""
        let time = bar.secondsLeft.map { TimeText.clock($0) + " left" } ?? ""
        if let note = bar.note {
            pace = ColumnText.padded(note, to: 10)
            left = ColumnText.padded("", to: 13)
        } else {
            pace = ColumnText.padded(rate, to: 10, right: true)
            left = ColumnText.padded(time, to: 13)
        }
    }

    /// What to leave out, one after the other, until the line fits.
    var cuts: [(inout Parts) -> Void] {
        let first: [(inout Parts) -> Void] = [
            { $0.name = ColumnText.cut($0.name, to: 12) }, { $0.left = "" }, { $0.name = "" },
        ]
        // Why nothing moves is worth more than how far it came.
        return isNote
            ? first + [{ $0.bytes = "" }, { $0.hasBar = false }, { $0.pace = "" }]
            : first + [{ $0.pace = "" }, { $0.bytes = "" }, { $0.hasBar = false }]
    }

    /// The columns that all parts but the bar take, with the gaps between them.
    var width: Int { ColumnText.width(joined(bar: nil)) }

    func joined(bar: String?) -> String {
        let head = [name, percent].filter { !$0.isEmpty }.joined(separator: " ")
        let tail = [bytes, pace, left].filter { !$0.isEmpty }.joined(separator: "  ")
        let all = [head, bar ?? "", tail].filter { !$0.isEmpty }
        return all.joined(separator: bar == nil ? "  " : " ")
    }
}
