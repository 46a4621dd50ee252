internal import DriveBackupWire
internal import TestKit
internal import Testing

@Suite("Decoding what was encoded")
struct RoundTripTests {
    @Test("any message comes back as it was")
    func anyMessage() throws {
        var generator = SeededGenerator(testSeed())
        for type in allMessages {
            for _ in 0..<30 { try roundTrip(type, &generator) }
        }
    }

    private func roundTrip<M: WireMessage>(_ type: M.Type, _ generator: inout SeededGenerator) throws {
        let message = M.random(&generator)
        let bytes = try message.encode()
        #expect(try M.decode(bytes) == message)
        #expect(try message.encoding().size == bytes.count)
        let empty = try M().encode()
        #expect(empty.isEmpty)
        #expect(try M.decode(empty) == M())
    }

    @Test("an event encodes as the schema says, byte by byte")
    func event() throws {
        let event = JobEvent(
            sequence: 7, time: -1, jobID: "j",
            event: .completed(Completed(result: .completedWithErrors, missingBytes: 300)))
        let bytes: [UInt8] = [
            0x08, 7, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0x1a, 1, 0x6a,
            0x4a, 5, 0x08, 2, 0x10, 0xac, 2,
        ]
        #expect(try event.encode() == bytes)
        #expect(try JobEvent.decode(bytes) == event)
    }

    @Test("an empty message of a oneof is not lost")
    func emptyCase() throws {
        let event = JobEvent(event: .pending(Pending()))
        #expect(try event.encode() == [0x42, 0])
        #expect(try JobEvent.decode([0x42, 0]) == event)
    }

    @Test("of a oneof the last one on the wire counts")
    func lastCaseWins() throws {
        #expect(try JobEvent.decode([0x42, 0, 0x5a, 0]).event == .cancelled(Cancelled()))
    }

    @Test("a text with NUL is not encoded, wherever it is")
    func nul() throws {
        let error = #expect(throws: WireError.self) { try JobError(message: "a\0b").encode() }
        #expect(error?.message == "message: the text contains a NUL character")
        let nested = #expect(throws: WireError.self) {
            try JobEvent(event: .failed(Failed(error: JobError(reason: "\0")))).encode()
        }
        #expect(nested?.field == "failed.error.reason")
        let repeated = #expect(throws: WireError.self) {
            try ListDrivesResponse(drives: [Drive(), Drive(backing: [BackingFile(file: "\0")])]).encode()
        }
        #expect(repeated?.field == "drives.backing.file")
        #expect(throws: WireError.self) { try AgentInfo(addresses: ["a", "\0"]).encode() }
    }

    @Test("setting one case of a oneof to nil leaves the others alone")
    func oneofProperties() {
        var event = JobEvent(event: .pending(Pending()))
        event.completed = nil
        #expect(event.pending == Pending())
        event.completed = Completed(missingBytes: 1)
        #expect(event.event == .completed(Completed(missingBytes: 1)))
        event.completed = nil
        #expect(event.event == nil)
    }

    @Test("a list at the limit of fields is decoded within the arena's bound")
    func largeList() throws {
        let one = Job(id: "i", type: .backup, drive: "d", target: "t", state: .running, progress: Progress())
        let list = ListJobsResponse(jobs: Array(repeating: one, count: 9000))
        #expect(try ListJobsResponse.decode(list.encode()) == list)
        let empty = ListJobsResponse(jobs: Array(repeating: Job(), count: 65536))
        #expect(try ListJobsResponse.decode(empty.encode()) == empty)
        let full = Job(
            id: "i", type: .backup, drive: "d", target: "t", state: .running, result: .failed,
            progress: Progress(current: 1, total: 1), speed: 1, error: JobError(code: .aborted),
            pauseReason: .user,
            sync: .full, format: "r", pointInTime: 1, createdAt: 1, endedAt: 1, manualFinalize: true,
            manualDismiss: true, lastSequence: 1)
        let many = ListJobsResponse(jobs: Array(repeating: full, count: 2900))
        #expect(try ListJobsResponse.decode(many.encode()) == many)
    }
}
