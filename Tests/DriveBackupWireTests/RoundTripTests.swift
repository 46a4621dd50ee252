import DriveBackupWire
import Testing

@Suite("Decoding what was encoded")
struct RoundTripTests {
    @Test("an event comes back as it was")
    func event() throws {
        let event = JobEvent(
            sequence: 7, time: -1, jobID: "job",
            event: .completed(Completed(result: .completedWithErrors, missingBytes: 4096, progress: Progress(current: 5, total: 6))))
        #expect(try JobEvent.decode(event.encode()) == event)
        print(try event.encode(), event.json())
    }
}
