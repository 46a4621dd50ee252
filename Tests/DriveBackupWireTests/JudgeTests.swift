internal import DriveBackupWire
internal import Foundation
internal import TestKit
internal import Testing

/// protoc is the judge: it reads what we encode, and encodes the same from what it read.
@Suite("Encoding as protoc sees it")
struct JudgeTests {
    private static let seed = testSeed("sameBytes")

    @Test("protoc reads what we write, and writes the same bytes", arguments: allMessages.indices)
    func sameBytes(index: Int) async throws {
        var generator = SeededGenerator(Self.seed &+ UInt64(index))
        let type = allMessages[index]
        let bytes = try encodeSome(type, &generator)
        let text = try await protoc("--decode=\(type.messageName)", input: Data(bytes))
        let again = try await protoc("--encode=\(type.messageName)", "--deterministic_output", input: text)
        #expect(Array(again) == bytes, "\(type.messageName)")
    }

    @Test("protoc calls the values by the names that we call them")
    func names() async throws {
        let event = JobEvent(
            sequence: 1, time: -2, jobID: "j",
            event: .stateChanged(StateChanged(state: .paused, pauseReason: .error)))
        let text = try await protoc("--decode=drivebackup.v1.JobEvent", input: Data(event.encode()))
        #expect(
            String(decoding: text, as: UTF8.self) == """
                sequence: 1
                time: -2
                job_id: "j"
                state_changed {
                  state: JOB_STATE_PAUSED
                  pause_reason: PAUSE_REASON_ERROR
                }

                """)
    }

    private func encodeSome<M: WireMessage>(_ type: M.Type, _ generator: inout SeededGenerator) throws
        -> [UInt8]
    {
        try M.random(&generator).encode()
    }

    private func protoc(_ arguments: String..., input: Data) async throws -> Data {
        let tests = URL(filePath: #filePath).deletingLastPathComponent()
        let directory = try TemporaryDirectory()
        let (inputFile, outputFile) = (directory.file("input"), directory.file("output"))
        try input.write(to: URL(filePath: inputFile))
        // Through files: what protoc reads and writes is no text.
        let result = try await runProcess(
            "sh",
            [
                "-c", "in=$1 out=$2; shift 2; exec protoc \"$@\" <\"$in\" >\"$out\"", "sh", inputFile,
                outputFile,
                "-I\(tests.path)/../../proto", "-I\(tests.path)/proto",
            ] + arguments + [
                "drivebackup/v1/agent.proto", "drivebackup/v1/backups.proto", "drivebackup/v1/drives.proto",
                "drivebackup/v1/exports.proto", "drivebackup/rpc/v1/frames.proto", "testing/everything.proto",
            ])
        try #require(result.status == 0, "protoc failed: \(result.error)")
        return try Data(contentsOf: URL(filePath: outputFile))
    }
}
