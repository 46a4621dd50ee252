import DriveBackupClient
import Testing

@testable import DriveBackupCLI

@Suite("The progress bar")
struct ProgressBarTests {
    private static let total = Int64(20) << 30
    private static let names = [
        "vm1", "a-drive-with-a-long-name-that-nobody-would-type", "платформа", "磁盘一", "a\u{1B}[2Jb\r\nc",
    ]
    private static let bars: [ProgressBar] = names.flatMap { name in
        [0, 1, total / 3, total / 2, total - 1, total].flatMap { current in
            [
                ProgressBar(name: name, current: current, total: total, rate: nil, note: nil),
                ProgressBar(name: name, current: current, total: total, rate: 0, note: nil),
                ProgressBar(name: name, current: current, total: total, rate: 123 << 20, note: nil),
                ProgressBar(name: name, current: current, total: total, rate: 1, note: nil),
                ProgressBar(name: name, current: current, total: total, rate: 5, note: "finishing"),
            ]
        }
    }

    private static let widths = Array(0...50) + [59, 60, 79, 80, 81, 100, 120, 132, 200, 300]

    @Test("it is never wider than the terminal, and has no control characters", arguments: [true, false])
    func fits(unicode: Bool) {
        for bar in Self.bars {
            for width in Self.widths {
                let line = bar.line(width: width, unicode: unicode)
                #expect(ColumnText.width(line) <= width, "\(width): \(line)")
                #expect(line.unicodeScalars.allSatisfy { $0.properties.generalCategory != .control })
                if !unicode, bar.name == "vm1" {
                    #expect(line.utf8.allSatisfy { (0x20..<0x7f).contains($0) })
                }
            }
        }
    }

    @Test("from the narrowest terminal on it says the percentage")
    func percentage() {
        for bar in Self.bars {
            for width in Self.widths where width >= 20 {
                #expect(bar.line(width: width, unicode: true).contains("\(bar.percent)%"))
            }
        }
    }

    @Test("a wider terminal never shows less")
    func widening() {
        let bar = ProgressBar(name: "vm1", current: 5 << 30, total: Self.total, rate: 100 << 20, note: nil)
        var shown = 0
        for width in 4...300 {
            let line = bar.line(width: width, unicode: false)
            let words = ["vm1", "25%", "[", "5.00 GiB of 20.0 GiB", "100 MiB/s", "2:33 left"].count {
                line.contains($0)
            }
            #expect(words >= shown, "\(width): \(line)")
            shown = words
        }
        #expect(shown == 6)
    }

    @Test(
        "nothing moves while a job goes on: each part stays in its column", arguments: [20, 40, 80, 120, 200])
    func steady(width: Int) {
        var columns: Set<Int> = []
        var filled = 0
        for percent in 0...100 {
            let bar = ProgressBar(
                name: "vm1",
                current: Self.total / 100 * Int64(percent) + (percent == 100 ? Self.total % 100 : 0),
                total: Self.total, rate: Int64(percent) << 20, note: nil)
            let line = bar.line(width: width, unicode: false)
            columns.insert(
                line.count { $0 != " " } > 0 ? line.firstIndex(of: "[")?.utf16Offset(in: line) ?? -1 : -2)
            let now = line.count { $0 == "=" }
            #expect(now >= filled)
            filled = now
        }
        #expect(columns.count == 1)
    }

    @Test("the bar is full when all is done, and only then")
    func full() {
        for current in [0, 1, Self.total / 2, Self.total - 1, Self.total] {
            let bar = ProgressBar(name: "", current: current, total: Self.total)
            let line = bar.line(width: 30, unicode: true)
            #expect(line.contains("░") == (current < Self.total) || line.contains("▉"))
            #expect((bar.percent == 100) == (current == Self.total))
        }
        #expect(ProgressBar(name: "", current: 0, total: 0).percent == 100)
    }

    @Test("absurd numbers do no harm")
    func absurd() {
        for (current, total) in [
            (-5, 10), (10, -5), (Int64.max, 1), (Int64.max, .max), (1, .max), (.min, .min), (.min, .max),
            (.max, .min),
        ] {
            let bar = ProgressBar(name: "x", current: Int64(current), total: Int64(total), rate: 1, note: nil)
            #expect(ColumnText.width(bar.line(width: 80, unicode: true)) <= 80)
        }
    }

    @Test("whatever an agent says there is a rate and an end")
    func absurdAgent() {
        var meter = RateMeter()
        meter.note(.min, at: .zero)
        meter.note(.max, at: .milliseconds(500))
        #expect(meter.rate(at: .milliseconds(500)) == .max)
        var job = Job()
        (job.id, job.state, job.result) = ("vm1", .concluded, .completedWithErrors)
        (job.pointInTime, job.endedAt, job.createdAt) = (1, 200_000_001, 1)
        job.progress = Progress(current: .max, total: .max)
        job.missingBytes = .max
        job.missing = [Range(offset: 0, length: .max), Range(offset: .max, length: .max)]
        #expect(!JobText.story(job, prefix: "drive-backup").isEmpty)
        #expect(JobText.history([job]).lines.count > 1)
    }

    @Test("the rate is that of the last seconds, and does not depend on how often it is asked")
    func rate() {
        var meter = RateMeter()
        #expect(meter.rate(at: .zero) == nil)
        for step in 0..<600 {
            let time = Duration.milliseconds(100 * step)
            meter.note(Int64(step < 300 ? step * 1000 : 300_000 + (step - 300) * 5000), at: time)
            if step == 290 { #expect(meter.rate(at: time) == 10000) }
        }
        let rate = meter.rate(at: .milliseconds(59900)) ?? 0
        #expect((49000...51000).contains(rate))
        // Nothing comes any more: the rate falls.
        #expect(meter.rate(at: .seconds(80)) ?? .max < 20000)
        meter.restart()
        #expect(meter.rate(at: .seconds(81)) == nil)
    }
}
