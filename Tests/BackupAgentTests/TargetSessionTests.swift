import BackupJobs
import BlockIO
import DiskImages
import Foundation
import Glibc
import TestKit
import Testing

@testable import BackupAgent

@Suite("A target that others read while it ends")
struct TargetSessionTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func spec(
        _ name: String, _ number: Int = 1, size: UInt64, format: ImageFormat = .raw
    ) -> TargetSpec {
        TargetSpec(
            path: directory.file(name), mode: .new(overwrite: false), format: format, size: size, sync: .full,
            access: .everything, job: JobNumber(value: UInt64(number)), jobID: "j\(number)")
    }

    /// A session whose image is a disk that a test can hold up.
    private func simulated() async throws -> (session: TargetSession, disk: SimDisk) {
        let engine = ThreadsEngine(name: "sim target")
        let disk = SimDisk(size: 1 << 20, engine: engine)
        let spec = spec("sim", size: disk.size)
        let descriptor = open(spec.path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        let keeper = try LockKeeper(keeping: descriptor, path: spec.path)
        let file = try await engine.run { () async throws(BlockError) in
            try await HostFile(
                adopting: descriptor, name: spec.path, readOnly: false, keepsLocks: true, engine: engine)
        }
        let image = TargetPlace.Image(device: disk, format: .raw, clusterSize: 65536, readsAsZero: true)
        let place = TargetPlace(
            path: spec.path, birthTime: 0, new: nil,
            manifest: ManifestFile(of: "sim", in: try Directory(directory.path), on: engine),
            claims: FileClaims(), holder: .target(spec.job, jobID: spec.jobID))
        return (TargetSession(image, place: place, file: file, keeper: keeper, spec: spec), disk)
    }

    private func read(_ session: any JobTarget, _ range: ByteRange = ByteRange(0..<4096)) async -> BlockError?
    {
        let buffer = IOBuffer(count: Int(range.length))
        do throws(BlockError) {
            try await session.read(range, into: buffer.slice)
            return nil
        } catch {
            return error
        }
    }

    private func until(_ condition: () -> Bool) async { while !condition() { await Task.yield() } }

    @Test("a target is closed when the last read has ended, and no other is let in meanwhile or afterwards")
    func closesAfterReads() async throws {
        let (session, disk) = try await simulated()
        disk.hold { $0.operation == .read }
        let slow = Task { await read(session) }
        await until { disk.heldCalls.count == 1 }
        let completing = Task { try await session.complete() }
        await until { disk.calls.contains { $0.operation == .flush } }
        // From some moment on reads are refused, though nothing is closed yet.
        var refusal: BlockError?
        while refusal == nil {
            let reading = Task { await read(session) }
            let done = OneShot<BlockError?>()
            Task { done.fulfil(await reading.value) }
            refusal = await done.wait(atMost: .milliseconds(1)) ?? nil
        }
        #expect(refusal?.code == .cancelled && refusal?.message.contains(session.name) == true)
        #expect(!disk.calls.contains { $0.operation == .close })
        disk.release()
        #expect(await slow.value == nil)
        try await completing.value
        #expect(disk.calls.last?.operation == .close)
        // The engine is gone by now.
        #expect(await read(session)?.code == .cancelled)
        #expect(await session.giveUp(keep: false), "it is complete")
        #expect(await read(session)?.code == .cancelled)
        await #expect(throws: BlockError.self) { try await session.writeZeroes(ByteRange(0..<4096)) }
        await #expect(throws: BlockError.self) { try await session.complete() }
        #expect(session.failedOperation == nil, "a read of others that is refused is no failure of the job")
    }

    @Test(
        "a read that hangs holds up the completion until the target is given up: nothing is closed under it")
    func hangingRead() async throws {
        let (session, disk) = try await simulated()
        disk.hold { $0.operation == .read }
        let slow = Task { await read(session) }
        await until { disk.heldCalls.count == 1 }
        let completing = Task { try await session.complete() }
        await until { disk.calls.contains { $0.operation == .flush } }
        #expect(await session.giveUp(keep: false) == false)
        let outcome = await completing.result
        #expect(throws: BlockError.self) { try outcome.get() }
        #expect(await read(session)?.code == .cancelled)
        #expect(!disk.calls.contains { $0.operation == .close })
        disk.release()
        #expect(await slow.value == nil)
        await until { disk.calls.last?.operation == .close }
        #expect(await read(session)?.code == .cancelled)
    }

    @Test("a target that has its name already is complete; one whose name is another's leaves nothing there")
    func names() async throws {
        let opener = try TargetHome.thisProcess.opener()
        for (number, isOwn) in [(1, true), (2, false)] {
            let session = try await opener.open(spec("t", number, size: 4096, format: .raw))
            try await session.putManifest(Array(Manifest.mark.utf8), isFinal: true)
            try await session.prepare()
            let (path, partial) = (directory.file("t"), directory.file("t.partial"))
            if isOwn {
                // As a kill between the two steps leaves it where names are given by linking.
                #expect(link(partial, path) == 0)
                try await session.publish()
                #expect(access(partial, F_OK) != 0 && access(path + ".manifest.json", F_OK) == 0)
                #expect(await session.giveUp(keep: false) == true)
                #expect(unlink(path) == 0 && unlink(path + ".manifest.json") == 0)
            } else {
                #expect(FileManager.default.createFile(atPath: path, contents: Data("other".utf8)))
                await #expect(throws: BlockError.self) { try await session.publish() }
                _ = await session.giveUp(keep: true)
                #expect(try String(contentsOfFile: path, encoding: .utf8) == "other")
                #expect(access(path + ".manifest.json", F_OK) != 0, "it stands beside another's file")
                #expect(access(partial, F_OK) == 0)
            }
        }
    }

    @Test(
        "who reads a target while it is completed or given up reads what was written, or is refused",
        arguments: [ImageFormat.raw, .qcow2], TargetHome.allCases)
    func readers(format: ImageFormat, home: TargetHome) async throws {
        var random = SeededGenerator(testSeed())
        let size: UInt64 = 1 << 20
        let opener = try home.opener()
        for number in 1...(home == .thisProcess ? 100 : 20) {
            let session = try await opener.open(spec("t\(number)", number, size: size, format: format))
            // Each target has bytes of its own: those of the next one, which may get the same descriptor, differ.
            let whole = IOBuffer(count: Int(size))
            whole.bytes.initializeMemory(as: UInt8.self, repeating: UInt8(number))
            try await session.write(ByteRange(0..<size), from: whole.slice)
            let (givesUp, keeps) = (random.oneIn(2), random.oneIn(2))
            let haveRead = OneShot<Void>()
            await withTaskGroup(of: Void.self) { group in
                for reader in 0..<4 {
                    var random = SeededGenerator(UInt64(number * 4 + reader))
                    group.addTask {
                        let buffer = IOBuffer(count: 65536)
                        while true {
                            let range = ByteRange(
                                offset: UInt64.random(in: 0..<size - 65536, using: &random), length: 65536)
                            do throws(BlockError) { try await session.read(range, into: buffer.slice) } catch
                            {
                                #expect(error.code == .cancelled, "\(error)")
                                return
                            }
                            let isRight = buffer.bytes.withMemoryRebound(to: UInt64.self) { words in
                                words.allSatisfy { $0 == UInt64(number) &* 0x0101_0101_0101_0101 }
                            }
                            #expect(isRight, "bytes of another file")
                            haveRead.fulfil(())
                        }
                    }
                }
                _ = await haveRead.wait()
                if givesUp {
                    #expect(await session.giveUp(keep: keeps) == false)
                } else {
                    await #expect(throws: Never.self) { try await session.complete() }
                }
            }
        }
    }
}

extension JobTarget {
    /// All of its end.
    func complete() async throws(BlockError) {
        try await prepare()
        try await publish()
    }
}
