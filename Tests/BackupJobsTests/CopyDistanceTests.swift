internal import Testing

@testable internal import BackupJobs

@Suite("How far the copy is")
struct CopyDistanceTests {
    private static let soon = Duration.seconds(4)

    /// Looks every 250 ms, at each of which so much waits and so much was copied since the one before, in MiB.
    private static func looks(_ looks: [(waiting: UInt64, copied: UInt64)]) -> [Bool] {
        var (distance, copied) = (CopyDistance(), UInt64(0))
        return looks.enumerated().map { index, look in
            copied += look.copied << 20
            distance.note(
                waiting: look.waiting << 20, copied: copied, now: .milliseconds(250 * index), soon: soon)
            return distance.isFar
        }
    }

    @Test("it is near until there was something to compare, and where what waits is copied soon")
    func near() {
        #expect(Self.looks([(2048, 0), (2048, 200)]) == [false, false])
        #expect(Self.looks([(0, 0), (0, 0)]) == [false, false])
        // Four seconds at 250 ms each are sixteen times as much.
        #expect(Self.looks([(160, 0), (160, 10), (161, 10)]) == [false, false, true])
    }

    @Test(
        "it is far from what waits for a target that is slow or hangs, and near again when that has become quick"
    )
    func far() {
        #expect(Self.looks([(64, 5), (64, 0), (64, 0)]) == [false, true, true])
        #expect(Self.looks([(100, 0), (100, 2), (100, 50), (100, 2)]) == [false, true, false, true])
    }

    @Test("looks that are too close to each other tell nothing")
    func close() {
        var distance = CopyDistance()
        distance.note(waiting: 1 << 30, copied: 0, now: .zero, soon: Self.soon)
        distance.note(waiting: 1 << 30, copied: 0, now: .milliseconds(249), soon: Self.soon)
        #expect(!distance.isFar)
        distance.note(waiting: 1 << 30, copied: 0, now: .milliseconds(250), soon: Self.soon)
        #expect(distance.isFar)
        // A copy that has begun anew has copied nothing.
        distance.note(waiting: 1 << 30, copied: 1 << 30, now: .milliseconds(500), soon: Self.soon)
        #expect(!distance.isFar)
        distance.note(waiting: 1 << 30, copied: 0, now: .milliseconds(750), soon: Self.soon)
        #expect(distance.isFar)
    }
}
