import DriveBackupWire
import Testing

@Suite("JSON of messages")
struct JSONTests {
    @Test("a running job prints as the design shows it")
    func job() {
        let job = Job(
            id: "a", type: .backup, drive: "a", target: "/t/ä\"\u{1}\n", state: .running,
            progress: Progress(current: 1, total: 2), pauseReason: .unspecified, lastSequence: .max)
        #expect(
            job.json() == #"""
                {"id":"a","type":"backup","drive":"a","target":"/t/ä\"\u0001\n","state":"running",\#
                "progress":{"current":1,"total":2},"speed":0,"format":"","point_in_time":0,"created_at":0,\#
                "ended_at":0,"manual_finalize":false,"manual_dismiss":false,"last_sequence":18446744073709551615}
                """#)
    }
}
