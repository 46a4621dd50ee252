import BackupJobs
import BlockIO
import DiskImages
import Glibc
import Logging
import TestKit
import Testing

@testable import BackupAgent

/// Where targets are opened.
enum TargetHome: Sendable, CaseIterable {
    case thisProcess, ownProcesses
    /// Processes that have a ring each, where the system allows one.
    case ownRings

    func opener(_ claims: FileClaims = FileClaims(), store: StateStore? = nil) throws -> any TargetOpener {
        switch self {
        case .thisProcess: TargetSessions(claims: claims)
        case .ownProcesses: try processes(claims, store: store)
        case .ownRings: try processes(claims, store: store, kind: .preferred())
        }
    }
}

private func processes(
    _ claims: FileClaims = FileClaims(), store: StateStore? = nil, kind: EngineKind = .threads,
    patience: Duration = .milliseconds(400)
) throws -> TargetProcesses {
    try TargetProcesses(
        claims: claims, store: store, executable: try agentProgram(), kind: kind, patience: patience,
        logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
}

@Suite("A target, in this process and in one of its own")
struct TargetProcessTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func spec(
        _ name: String, _ number: Int = 1, size: UInt64 = 1 << 20, format: ImageFormat = .raw,
        mode: TargetSpec.Mode = .new(overwrite: false)
    ) -> TargetSpec {
        TargetSpec(
            path: directory.file(name), mode: mode, format: format, size: size, sync: .full,
            access: .everything, job: JobNumber(value: UInt64(number)), jobID: "j\(number)")
    }

    private func names() async throws -> [String] {
        try await runProcess("ls", ["-A", directory.path]).output.split(separator: "\n").map(String.init)
    }

    private func refusal(_ opener: any TargetOpener, _ spec: TargetSpec) async -> AgentError? {
        do throws(AgentError) {
            _ = await (try opener.open(spec)).giveUp(keep: false)
            return nil
        } catch {
            return error
        }
    }

    @Test(
        "what is written is read again and is in the file", arguments: [ImageFormat.raw, .qcow2],
        TargetHome.allCases)
    func contents(format: ImageFormat, home: TargetHome) async throws {
        var random = SeededGenerator(testSeed())
        let target = try await home.opener().open(spec("t", size: 3 << 20, format: format))
        #expect(target.name == directory.file("t") && target.format == format && target.readsAsZero)
        let whole = IOBuffer(count: 3 << 20)
        for index in whole.bytes.indices { whole.bytes[index] = UInt8.random(in: 0...255, using: &random) }
        // More than one buffer at once, then a part in the middle of another, then zeroes.
        try await target.write(ByteRange(0..<3 << 20), from: whole.slice)
        whole.bytes[65536..<131072].copyBytes(from: whole.bytes[0..<65536])
        try await target.write(ByteRange(65536..<131072), from: whole[65536..<131072])
        try await target.writeZeroes(ByteRange(1 << 20..<2 << 20))
        whole[1 << 20..<2 << 20].bytes.initializeMemory(as: UInt8.self, repeating: 0)
        let seen = IOBuffer(count: 3 << 20)
        try await target.read(ByteRange(0..<3 << 20), into: seen.slice)
        #expect(whole.bytes.elementsEqual(seen.bytes))
        let beyond = await #expect(throws: BlockError.self) {
            try await target.write(ByteRange(3 << 20..<4 << 20), from: whole[0..<1 << 20])
        }
        #expect(beyond?.code == .invalid && target.failedOperation == nil)
        #expect(try await names() == ["t.partial"])
        try await target.complete()
        #expect(try await names() == ["t"])
        #expect(await target.giveUp(keep: false), "it is complete")
        let raw = directory.file("raw")
        try await qemuImg(["convert", "-f", format.rawValue, "-O", "raw", directory.file("t"), raw])
        let file = try await runProcess("sha256sum", [raw])
        let content = directory.file("content")
        try write(whole, to: content)
        let wanted = try await runProcess("sha256sum", [content])
        #expect(file.output.prefix(64) == wanted.output.prefix(64))
    }

    private func write(_ buffer: IOBuffer, to path: String) throws {
        guard let file = fopen(path, "w") else { throw TestKitError("no file \(path)") }
        defer { fclose(file) }
        let count = fwrite(buffer.bytes.baseAddress, 1, buffer.count, file)
        guard count == buffer.count else { throw TestKitError("wrote \(count) bytes") }
    }

    @Test("refusals are the same, and nothing is made or claimed by them")
    func refusals() async throws {
        let here = FileClaims()
        let there = FileClaims()
        let openers = [try TargetHome.thisProcess.opener(here), try TargetHome.ownProcesses.opener(there)]
        try await makeRaw(directory.file("drive"))
        try await makeRaw(directory.file("exists"))
        _ = try await runProcess("sh", ["-c", "echo > o.partial; mkfifo fifo"], directory: directory.path)
        guard let drive = FileIdentity.of(path: directory.file("drive")) else {
            throw TestKitError("there is no drive")
        }
        for claims in [here, there] {
            try claims.claim(
                [.init(path: directory.file("drive"), identities: [drive], isWritten: true)], forDrive: "vm1")
        }
        var refused = [
            spec("exists"), spec("drive", mode: .existing), spec("drive", mode: .new(overwrite: true)),
            spec("none/t"), spec("o"), spec("fifo", mode: .existing), spec("missing", mode: .existing),
            spec("exists", size: 4096, mode: .existing), spec("t/"),
        ]
        var below = spec("t")
        below.access = .below([directory.file("allowed")])
        refused.append(below)
        var backed = spec("t")
        backed.backing = TargetSpec.Backing(path: directory.file("drive"), format: .raw)
        refused.append(backed)
        let before = try await snapshot(directory.path)
        for spec in refused {
            let outcomes = [await refusal(openers[0], spec), await refusal(openers[1], spec)]
            #expect(outcomes[0] != nil && outcomes[0] == outcomes[1], "\(spec.path)")
            #expect(try await snapshot(directory.path) == before, "\(spec.path)")
        }
        for opener in openers {
            await #expect(throws: AgentError.self) { try await opener.check(spec("exists")) }
        }
        for opener in openers { try await opener.check(spec("t")) }
        // What was refused to one job is another's.
        for opener in openers {
            #expect(await refusal(opener, spec("exists", 2, size: 8 << 20, mode: .existing)) == nil)
        }
    }

    @Test("another job's target is refused until it is given up", arguments: TargetHome.allCases)
    func otherJobs(home: TargetHome) async throws {
        let opener = try home.opener()
        let target = try await opener.open(spec("t"))
        #expect(await refusal(opener, spec("t", 2))?.reason == .targetBusy)
        #expect(await target.giveUp(keep: false) == false)
        #expect(try await names() == [])
        #expect(await refusal(opener, spec("t", 2)) == nil)
        let kept = try await opener.open(spec("t", 3))
        #expect(await kept.giveUp(keep: true) == false)
        #expect(try await names() == ["t.partial"])
    }

    @Test("the end of a job does not wait for a target that does not answer, and the next one does")
    func givenUpAtOnce() async throws {
        let state = try TemporaryDirectory()
        let store = try StateStore.open(directory: state.path)
        // Nothing is killed: the process has all the time that the test needs.
        let processes = try processes(store: store, patience: .seconds(3600))
        let target = try await processes.open(spec("t", 4711))
        let found = try await runProcess("pgrep", ["-x", "-P", "\(getpid())", "target j4711"]).output
        let process = try #require(pid_t(found.split(separator: "\n").first ?? ""))
        #expect(kill(process, SIGSTOP) == 0)
        let writing = Task { () -> BlockError? in
            let buffer = IOBuffer(count: 4096)
            do throws(BlockError) { try await target.write(ByteRange(0..<4096), from: buffer.slice) } catch {
                return error
            }
            return nil
        }
        let connection = try #require((target as? TargetProcess)?.connection)
        while connection.unanswered == 0 { await Task.yield() }
        #expect(await target.giveUp(keep: false, atOnce: true) == false)
        let job = JobNumber(value: 4711)
        #expect(processes.busy(job)?.contains("being given up") == true)
        // Should this agent be killed now, the next one removes it.
        #expect(try await store.leftovers().map(\.path) == [directory.file("t")])
        #expect(try await names() == ["t.partial"])
        let next = Task { await refusal(processes, spec("t", 2)) }
        #expect(kill(process, SIGCONT) == 0)
        let refused = await next.value
        #expect(refused == nil)
        // It was written, or came too late.
        _ = await writing.value
        #expect(processes.busy(job) == nil)
        #expect(try await store.leftovers() == [])
        #expect(try await names() == [])
        await processes.shutDown()
        store.close()
    }

    @Test("what an earlier agent was to remove is removed, and what has its name now is not")
    func leftovers() async throws {
        let state = try TemporaryDirectory()
        let store = try StateStore.open(directory: state.path)
        let script =
            "echo > a.partial; echo > b.partial; echo mine > c.partial; : > d.partial; echo > e.partial; : > e; : > g"
        _ = try await runProcess("sh", ["-c", script], directory: directory.path)
        func identity(_ name: String) -> FileIdentity? { FileIdentity.of(path: directory.file(name)) }
        func leftover(_ name: String, _ identity: FileIdentity?, birthTime: UInt64 = 0) -> TargetLeftover {
            TargetLeftover(
                jobID: "j", path: directory.file(name), identity: identity, birthTime: birthTime,
                overwrites: false)
        }
        func birthTime(_ name: String) throws -> UInt64 {
            let descriptor = try Directory(directory.path).open(name, readOnly: true)
            defer { Descriptor.close(descriptor) }
            return Descriptor.birthTime(descriptor)
        }
        try await store.add(leftover("a", identity("a.partial")))
        // Another file has the name now.
        try await store.add(leftover("b", identity("a.partial")))
        // Nobody knows whether these were made: one has content, so it is somebody's.
        try await store.add(leftover("c", nil))
        try await store.add(leftover("d", nil))
        // It has its final name.
        try await store.add(leftover("e", identity("e"), birthTime: birthTime("e")))
        // A later file that has got the number, and one of which only the number is known.
        try await store.add(leftover("e", identity("e.partial"), birthTime: birthTime("e.partial") - 1))
        try await store.add(leftover("g", identity("g")))
        try await store.add(leftover("none/f", identity("a.partial")))
        #expect(try await store.leftovers().count == 8)
        let processes = try processes(store: store)
        try await processes.begin()
        while try await !store.leftovers().isEmpty { await Task.yield() }
        #expect(try await names() == ["b.partial", "c.partial", "e.partial", "g"])
        await processes.shutDown()
        store.close()
    }

    @Test("a program that cannot be started is said to be the reason")
    func noProgram() async throws {
        for (program, words) in [("/nowhere", "No such file"), ("/bin/true", "ended with status 0")] {
            let processes = try TargetProcesses(
                claims: FileClaims(), store: nil, executable: program,
                logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
            let error = await refusal(processes, spec("t"))
            #expect(
                error?.reason == .ioError && error?.message.contains(words) == true, "\(error?.message ?? "")"
            )
            await processes.shutDown()
        }
    }

    @Test("every request and reply is understood on the other side, and garbage is refused")
    func frames() throws {
        let error = BlockError("Couldn't write é\u{0}", errno: 5, range: ByteRange(1..<UInt64.max))
        let file = TargetLeftover(
            jobID: "j", path: "/t", identity: FileIdentity(fileOn: .max, inode: .max), overwrites: true)
        var frames = TargetFrames()
        var bytes: [UInt8] = []
        TargetFrame(.write(ByteRange(7..<9), memory: 5), id: 1).append(to: &bytes)
        TargetFrame(.remove(file), id: 2).append(to: &bytes)
        TargetFrame(.failed(error, .flush), id: 3).append(to: &bytes)
        TargetFrame(.done, id: .max).append(to: &bytes)
        var found: [TargetFrame] = []
        // As few bytes at once as there can be.
        for byte in bytes {
            withUnsafeBytes(of: byte) { frames.add($0) }
            if let frame = try frames.next() { found.append(frame) }
        }
        #expect(found.map(\.id) == [1, 2, 3, .max])
        guard case .write(let range, let memory) = try found[0].request(),
            case .remove(let same) = try found[1].request(),
            case .failed(let told, let operation) = try found[2].reply(), case .done = try found[3].reply()
        else { throw TestKitError("other frames: \(found)") }
        #expect(
            range == ByteRange(7..<9) && memory == 5 && same == file && told == error && operation == .flush)
        #expect(throws: BlockError.self) { try found[0].reply() }
        #expect(throws: BlockError.self) { try found[3].request() }
        #expect(throws: BlockError.self) { try found[2].request() }
        for position in [3, 4, 31] {
            var garbled = bytes
            garbled[position] = 0xff
            if position == 31 { for index in 16..<32 { garbled[index] = 0xff } }
            var frames = TargetFrames()
            garbled.withUnsafeBytes { frames.add($0) }
            #expect(throws: BlockError.self, "byte \(position)") { while try frames.next() != nil {} }
        }
    }
}
