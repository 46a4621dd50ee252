internal import DriveBackupWire
internal import Testing

@Suite("What a decoder refuses")
struct WireCheckTests {
    struct Case: Sendable, CustomTestStringConvertible {
        let name: String
        let bytes: [UInt8]
        let message: String
        var testDescription: String { name }

        init(_ name: String, _ bytes: [UInt8], _ message: String) {
            self.name = name
            self.bytes = bytes
            self.message = message
        }
    }

    /// As a BackupRequest: 1 is a string, 3 an enum, 6 a bool.
    static let cases: [Case] = [
        Case("an unknown enum value", [0x18, 77], "sync: unknown value 77"),
        Case(
            "a negative enum value", [0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            "sync: unknown value -1"),
        Case(
            "a known enum value with more bits above", [0x18, 0x81, 0x80, 0x80, 0x80, 0x10],
            "sync: unknown value 4294967297"),
        Case("a NUL", [0x0a, 2, 0x61, 0], "drive: the text contains a NUL character"),
        Case(
            "a lone continuation byte", [0x0a, 2, 0x61, 0x80], "drive: the text is not valid UTF-8 at byte 1"),
        Case(
            "an overlong UTF-8 form", [0x12, 3, 0x61, 0xc0, 0xaf],
            "target: the text is not valid UTF-8 at byte 1"),
        Case("a surrogate", [0x0a, 3, 0xed, 0xa0, 0x80], "drive: the text is not valid UTF-8 at byte 0"),
        Case(
            "a string as a varint", [0x08, 1],
            "drive: it is encoded as a varint, its type needs a length and bytes"),
        Case(
            "an enum as a string", [0x1a, 1, 1],
            "sync: it is encoded as a length and bytes, its type needs a varint"),
        Case(
            "a bool as four bytes", [0x35, 1, 0, 0, 0],
            "overwrite: it is encoded as four bytes, its type needs a varint"),
        Case("a truncated string", [0x0a, 5, 0x61], "drive: the message ends in the middle of a field"),
        Case("a missing length", [0x0a], "drive: the message ends in the middle of a field"),
        Case("a truncated varint", [0x18, 0x80], "sync: the message ends in the middle of a field"),
        Case(
            "an endless varint", [0x38] + Array(repeating: 0xff, count: 12),
            "speed: a number is longer than its type can be"),
        Case(
            "a varint of more than 64 bits", [0x38] + Array(repeating: 0xff, count: 9) + [2],
            "speed: a number is longer than its type can be"),
        Case(
            "a length of 2 to the 35th", [0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f],
            "drive: the message ends in the middle of a field"),
        Case(
            "a length of six bytes", [0x0a, 0x81, 0x80, 0x80, 0x80, 0x80, 0],
            "drive: a number is longer than its type can be"),
        Case("a group", [0x0b, 0x0c], "field 1 is a group, which this protocol does not have"),
        Case(
            "an unknown group", [0xa3, 0x06, 0xa4, 0x06],
            "field 100 is a group, which this protocol does not have"),
        Case("wire type 7", [0x0f], "field 1 is of wire type 7, which this protocol does not have"),
        Case("field 0", [0x00, 1], "there is no valid field number at byte 0"),
        Case(
            "a field number beyond 29 bits", [0xf8, 0xff, 0xff, 0xff, 0x7f],
            "there is no valid field number at byte 0"),
        Case(
            "an unknown field cut short", [0xa2, 0x06, 5, 1],
            "field 100: the message ends in the middle of a field"),
    ]

    @Test("a malformed request is refused by name", arguments: cases)
    func refused(_ example: Case) {
        let error = #expect(throws: WireError.self) { try BackupRequest.decode(example.bytes) }
        #expect(error?.message == example.message)
        #expect(error?.messageName == "drivebackup.v1.BackupRequest")
        #expect(error?.description == "drivebackup.v1.BackupRequest is not valid: \(example.message)")
    }

    @Test("an unknown enum value in a list is refused, packed or not, and named with its path")
    func repeatedEnums() {
        for bytes: [UInt8] in [[0xb2, 1, 2, 1, 77], [0xb0, 1, 1, 0xb0, 1, 77]] {
            let error = #expect(throws: WireError.self) { try Everything.decode(bytes) }
            #expect(error?.message == "colours: unknown value 77")
        }
        let nested = #expect(throws: WireError.self) {
            // failed.error.code
            try JobEvent.decode([0x52, 4, 0x0a, 2, 0x08, 99])
        }
        #expect(nested?.message == "failed.error.code: unknown value 99")
    }

    @Test("a list of enums is read packed and unpacked, in the order of the wire")
    func packing() throws {
        let negative: [UInt8] = [0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]
        let bytes: [UInt8] = [0xb2, 1, 11, 1] + negative + [0xb0, 1, 2]
        #expect(try Everything.decode(bytes).colours == [.red, .negative, .default])
    }

    @Test("an answer's unknown enum value is kept as a number")
    func unknownInResponse() throws {
        let job = try Job.decode([0x28, 77], limits: .response)
        #expect(job.state.rawValue == 77 && !job.state.isKnown && job.state.name == "77")
        #expect(try job.encode() == [0x28, 77])
        #expect(job.json().contains(#""state":77,"#))
    }

    @Test("fields that the schema does not know are no error")
    func unknownFields() throws {
        let bytes: [UInt8] =
            [0x0a, 1, 0x61, 0xa2, 0x06, 2, 0, 0xff, 0xa8, 0x06, 1, 0xad, 0x06, 1, 2, 3, 4]
            + [0xb1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0x18, 1]
        #expect(try BackupRequest.decode(bytes) == BackupRequest(drive: "a", sync: .full))
    }

    @Test("more fields than the limit are refused, wherever they are")
    func tooMany() throws {
        let message = ListJobsResponse(jobs: Array(repeating: Job(id: "a"), count: 5))
        let bytes = try message.encode()
        #expect(try ListJobsResponse.decode(bytes, limits: WireLimits(maximumFields: 10)) == message)
        let error = #expect(throws: WireError.self) {
            try ListJobsResponse.decode(bytes, limits: WireLimits(maximumFields: 9))
        }
        #expect(error?.code == .tooLarge)
        #expect(throws: WireError.self) {
            try Everything.decode([0xb2, 1, 3, 1, 1, 1], limits: WireLimits(maximumFields: 3))
        }
        let unknown = Array(repeating: [0xa8, 0x06, 1] as [UInt8], count: 65537).flatMap { $0 }
        #expect(throws: WireError.self) { try Job.decode(unknown) }
        #expect(try Job.decode(Array(unknown.dropLast(3))) == Job())
    }

    @Test("deeper messages than the limit are refused")
    func tooDeep() throws {
        let bytes = try JobEvent(event: .failed(Failed(error: JobError(code: .aborted)))).encode()
        #expect(throws: Never.self) { try JobEvent.decode(bytes, limits: WireLimits(maximumDepth: 3)) }
        let error = #expect(throws: WireError.self) {
            try JobEvent.decode(bytes, limits: WireLimits(maximumDepth: 2))
        }
        #expect(error?.message == "failed.error: messages are nested more than 2 deep")
    }
}
