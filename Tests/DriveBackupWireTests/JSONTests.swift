internal import DriveBackupWire
internal import Foundation
internal import TestKit
internal import Testing

@Suite("JSON of messages")
struct JSONTests {
    @Test("a running job prints as the design shows it")
    func runningJob() {
        let job = Job(
            id: "a", type: .backup, drive: "a", target: "/t/ä\"\u{1}\n", state: .running,
            progress: Progress(current: 1, total: 2), lastSequence: .max)
        #expect(
            job.json()
                == #"{"id":"a","type":"backup","drive":"a","target":"/t/ä\"\u0001\n","state":"running","#
                + #""progress":{"current":1,"total":2},"speed":0,"format":"","point_in_time":0,"created_at":0,"#
                + #""ended_at":0,"manual_finalize":false,"manual_dismiss":false,"last_sequence":18446744073709551615,"#
                + #""missing_bytes":0,"missing":[],"target_busy":"","error_count":0,"errors":[],"manifest":"","group":"","#
                + #""grouped":false,"restarts":0,"cloned":false}"#
        )
    }

    @Test("a failed job prints its result and its error")
    func failedJob() {
        let job = Job(
            id: "a", state: .concluded, result: .failed,
            error: JobError(code: .aborted, reason: "IO_ERROR", message: "No."), sync: .top)
        let json = job.json()
        #expect(json.contains(#""state":"concluded","result":"failed","speed":0,"#))
        #expect(
            json.contains(#""error":{"code":"aborted","reason":"IO_ERROR","message":"No."},"sync":"top","#))
    }

    @Test("an event prints with the one thing that happened, even if there is nothing to say of it")
    func events() {
        #expect(
            JobEvent(sequence: 1, time: 2, jobID: "j", event: .pending(Pending())).json()
                == #"{"sequence":1,"time":2,"job_id":"j","pending":{}}"#)
        #expect(
            JobEvent(jobID: "j", event: .completed(Completed(result: .completed))).json()
                == #"{"sequence":0,"time":0,"job_id":"j","completed":{"result":"completed","missing_bytes":0,"#
                + #""missing":[]}}"#
        )
        let error = IOErrorEvent(
            side: .target, operation: .write, offset: 65536, length: 512, errno: 5, message: "m",
            action: .report,
            count: 1)
        #expect(
            JobEvent(jobID: "j", event: .ioError(error)).json()
                == #"{"sequence":0,"time":0,"job_id":"j","io_error":{"side":"target","operation":"write","#
                + #""offset":65536,"length":512,"errno":5,"message":"m","action":"report","count":1}}"#)
        #expect(
            JobEvent(event: .stateChanged(StateChanged(state: .created))).json()
                == #"{"sequence":0,"time":0,"job_id":"","state_changed":{"state":"created"}}"#)
    }

    @Test("lists are there even if they are empty, and bytes are base64")
    func listsAndBytes() {
        #expect(ListJobsResponse().json() == #"{"jobs":[],"more":false}"#)
        #expect(
            ListDrivesResponse(drives: [Drive(id: "a", backing: [BackingFile(), BackingFile()]), Drive()])
                .json()
                .hasPrefix(
                    #"{"drives":[{"id":"a","file":"","format":"","size":0,"read_only":false,"backing":[{"#))
        #expect(Frames.Detail(type: "t", value: [0xfb, 0xff]).json() == #"{"type":"t","value":"+/8="}"#)
        #expect(GetInfoRequest().json() == "{}")
    }

    @Test("fields come in the order of the schema, not of their numbers")
    func order() {
        let keys = Everything().json().split(separator: "\"").filter { $0 == "small" || $0 == "large" }
        #expect(keys == ["small", "large"])
    }

    @Test("another parser reads from the JSON of any message what is in it")
    func otherParser() throws {
        var generator = SeededGenerator(testSeed())
        for type in allMessages {
            for _ in 0..<10 { try compare(type, &generator) }
        }
    }

    private func compare<M: WireMessage>(_ type: M.Type, _ generator: inout SeededGenerator) throws {
        var message = M.random(&generator)
        let json = message.json()
        #expect(!json.contains { $0.isNewline && $0.isASCII })
        let object = try #require(try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any])
        #expect(JSONComparison.differences(&message, object) == [])
    }
}

/// Compares a message with what a JSON parser made of it.
struct JSONComparison: FieldCoder {
    private var object: [String: Any]
    private var differences: [String] = []

    static func differences<M: WireMessage>(_ message: inout M, _ object: [String: Any]) -> [String] {
        var comparison = JSONComparison(object: object)
        message.fields(&comparison)
        return comparison.differences + comparison.object.keys.map { "\($0) should not be there" }
    }

    mutating func bool(_ number: UInt32, _ name: StaticString, _ value: inout Bool) { equal(name, value) }
    mutating func int32(_ number: UInt32, _ name: StaticString, _ value: inout Int32) { integer(name, value) }
    mutating func int64(_ number: UInt32, _ name: StaticString, _ value: inout Int64) { integer(name, value) }
    mutating func uint32(_ number: UInt32, _ name: StaticString, _ value: inout UInt32) {
        integer(name, value)
    }
    mutating func uint64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        integer(name, value)
    }
    mutating func fixed64(_ number: UInt32, _ name: StaticString, _ value: inout UInt64) {
        integer(name, value)
    }
    mutating func string(_ number: UInt32, _ name: StaticString, _ value: inout String) {
        equal(name, Array(value.utf8)) { ($0 as? String).map { Array($0.utf8) } }
    }
    mutating func bytes(_ number: UInt32, _ name: StaticString, _ value: inout [UInt8]) {
        equal(name, value) { ($0 as? String).flatMap { Data(base64Encoded: $0) }.map { Array($0) } }
    }
    mutating func enumeration<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ value: inout E) {
        if value.isUnspecified { return absent(name) }
        equal(name, value.knownName ?? "")
    }
    mutating func message<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        guard var message = value else { return absent(name) }
        guard let inner = object.removeValue(forKey: "\(name)") as? [String: Any] else {
            return differences.append("\(name) is not there")
        }
        differences += Self.differences(&message, inner)
    }
    mutating func oneof(_: UInt32, is _: UInt32) -> UInt32? { nil }
    mutating func oneofMessage<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ value: inout M?) {
        message(number, name, &value)
    }
    mutating func strings(_ number: UInt32, _ name: StaticString, _ values: inout [String]) {
        equal(name, values)
    }
    mutating func enumerations<E: WireEnum>(_ number: UInt32, _ name: StaticString, _ values: inout [E]) {
        equal(name, values.map { $0.knownName ?? "" })
    }
    mutating func messages<M: WireMessage>(_ number: UInt32, _ name: StaticString, _ values: inout [M]) {
        guard let inner = object.removeValue(forKey: "\(name)") as? [[String: Any]],
            inner.count == values.count
        else {
            return differences.append("\(name) is not there, or of another length")
        }
        for index in values.indices { differences += Self.differences(&values[index], inner[index]) }
    }

    /// Foundation turns some negative integers into decimals that it then does not cast to Int64.
    private mutating func integer<I: FixedWidthInteger>(_ name: StaticString, _ value: I) {
        equal(name, String(value)) { ($0 as? NSNumber)?.stringValue }
    }

    private mutating func equal<T: Equatable>(
        _ name: StaticString, _ value: T, _ convert: (Any) -> T? = { $0 as? T }
    ) {
        guard let found = object.removeValue(forKey: "\(name)").flatMap(convert) else {
            return differences.append("\(name) is not there, or of another type, instead of \(value)")
        }
        if found != value { differences.append("\(name) is \(found) instead of \(value)") }
    }

    private mutating func absent(_ name: StaticString) {
        if object["\(name)"] != nil { differences.append("\(name) should not be there") }
        object["\(name)"] = nil
    }
}
