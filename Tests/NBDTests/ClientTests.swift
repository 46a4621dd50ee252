internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("Other people's clients")
struct ClientTests {
    @Test("nbdinfo sees what an export is", arguments: EngineKind.allCases)
    func info(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        let file = try await test.addFile("a", bytes: 10_000_001)
        let said = try await expectSuccess("nbdinfo", [test.uri("a")])
        #expect(said.contains("export-size: 10000001"))
        #expect(said.contains("newstyle-fixed"))
        #expect(said.contains("the file a"))
        for text in [
            "is_read_only: false", "can_multi_conn: true", "can_flush: true", "can_fua: true",
            "can_trim: true",
            "can_zero: true", "can_fast_zero: true", "can_df: true", "base:allocation",
            "block_size_minimum: 1",
            "block_size_preferred: 4096", "block_size_maximum: 33554432",
        ] { #expect(said.contains(text), "nbdinfo says \(text)") }
        let list = try await expectSuccess("nbdinfo", ["--list", test.uri()])
        #expect(list.contains("export=\"a\""))
        await test.server.remove("a", within: .seconds(10))
        try await test.engine.run { () async throws(BlockError) in try await file.close() }
        try await test.stop()
    }

    @Test("nbdcopy brings data there and back, holes and all", arguments: EngineKind.allCases)
    func copy(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        let size = 40 << 20
        _ = try await test.addFile("a", bytes: UInt64(size))
        var generator = SeededGenerator(testSeed())
        var data = Data(count: size)
        for _ in 0..<40 {
            let start = Int.random(in: 0..<size, using: &generator)
            let length = min(Int.random(in: 1...1_000_000, using: &generator), size - start)
            data.replaceSubrange(
                start..<start + length,
                with: Data(repeating: UInt8.random(in: 1...255, using: &generator), count: length))
        }
        let source = test.directory.file("source")
        let back = test.directory.file("back")
        try data.write(to: URL(fileURLWithPath: source))
        try await expectSuccess("nbdcopy", ["--flush", source, test.uri("a")])
        #expect(try Data(contentsOf: URL(fileURLWithPath: test.directory.file("a.raw"))) == data)
        try await expectSuccess(
            "nbdcopy", ["--connections=4", "--request-size=2097152", test.uri("a"), back])
        #expect(try Data(contentsOf: URL(fileURLWithPath: back)) == data)
        try await qemuImg(["compare", "-f", "raw", "-F", "raw", source, test.uri("a")])
        try await test.stop()
    }

    @Test("fio finds what it wrote, with many requests in flight", arguments: EngineKind.allCases)
    func fio(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        _ = try await test.addFile("a", bytes: 32 << 20)
        try await expectSuccess(
            "fio",
            [
                "--name=verify", "--ioengine=nbd", "--uri=" + test.uri("a"), "--rw=randwrite",
                "--bsrange=512-128k",
                "--iodepth=32", "--size=32m", "--verify=crc32c", "--verify_fatal=1", "--fsync=100",
                "--randrepeat=1", "--numjobs=1", "--verify_state_save=0",
            ])
        try await test.stop()
    }

    @Test("qemu-io reads, writes, zeroes and discards", arguments: EngineKind.allCases)
    func qemuIO(kind: EngineKind) async throws {
        let test = try await ServerUnderTest.start(kind)
        _ = try await test.addFile("a", bytes: 64 << 20)
        let commands = [
            "write -P 17 0 32M", "write -P 18 -f 1000 3000", "write -z -u 4M 1M", "write -z 6M 1M",
            "discard 8M 1M", "flush", "read -P 17 0 512", "read -P 18 1024 2976", "read -P 0 4M 1M",
            "read -P 0 6M 1M", "read -P 17 9M 23M", "read -P 0 32M 32M",
        ]
        let result = try await runProcess(
            "qemu-io", ["-f", "raw"] + commands.flatMap { ["-c", $0] } + [test.uri("a")])
        #expect(result.status == 0, "\(result.output)\(result.error)")
        #expect(
            !result.output.contains("failed") && !result.error.contains("failed"),
            "\(result.output)\(result.error)")
        let map = try await qemuImg(["map", "--output=json", "-f", "raw", test.uri("a")]).output
        #expect(map.contains("\"start\": 33554432, \"length\": 33554432"), "\(map)")
        try await test.stop()
    }

    @Test("a client over TCP is served as well")
    func tcp() async throws {
        let test = try await ServerUnderTest.start(address: .tcp(host: "localhost", port: 0))
        _ = try await test.addFile("a", bytes: 1 << 20)
        let size = try await expectSuccess("nbdinfo", ["--size", test.uri()])
        #expect(size.contains("1048576"))
        try await test.stop()
    }
}
