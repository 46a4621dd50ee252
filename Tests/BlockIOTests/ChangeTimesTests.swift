internal import Foundation
internal import TestKit
internal import Testing

@testable internal import BlockIO

@Suite("When a file was last changed by us", .serialized)
struct ChangeTimesTests {
    @Test(
        "every change of ours is noted before it is submitted and when it has ended; one of somebody else's is later",
        arguments: EngineKind.allCases)
    func noting(kind: EngineKind) async throws {
        try await onEngine(kind) { engine, directory in
            let path = directory.file("a.raw")
            try Data(count: 1 << 20).write(to: URL(fileURLWithPath: path))
            let memory = try MappedFile.create(directory.file("times"), length: 4096, allocated: 4096)
            let times = ChangeTimes(in: memory, at: 16)
            let file = try await HostFile.open(path, readOnly: false, growable: true, on: engine)
            guard try file.modificationTime() != nil else { return }
            file.noteChanges(in: times)
            let buffer = IOBuffer(count: 65536)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            let range = ByteRange(0..<65536)
            let changes: [@Sendable () async throws -> Void] = [
                { try await file.write(range, from: buffer.slice) },
                { try await file.write(ByteRange(1 << 20..<(1 << 20) + 65536), from: buffer.slice) },
                { try await file.writeZeroes(range, mayUnmap: false) },
                { try await file.writeZeroes(range, mayUnmap: true) },
                { try await file.write(range, from: buffer.slice) },
                { try await file.discard(range) },
                { try await file.setSize(1 << 19) },
            ]
            for change in changes {
                let before = times.last
                try await change()
                #expect(times.last > before)
                #expect(times.inFlight == 0)
                let modified = try #require(try file.modificationTime())
                #expect(modified <= times.last, "what we did is not taken for somebody else's")
            }
            let before = times.last
            file.beginChange()
            #expect(times.last > before && times.latest == times.last + ChangeTimes.slowest)
            file.beginChange()
            #expect(times.inFlight == 2)
            file.endChange()
            #expect(times.inFlight == 1 && times.latest > times.last)
            file.endChange()
            #expect(times.latest == times.last)
            // A modification time may lag by a tick of the kernel's.
            try await Task.sleep(for: .milliseconds(20))
            let other = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
            try other.write(contentsOf: Data([1]))
            try other.close()
            #expect(try #require(try file.modificationTime()) > times.last)
            try await file.close()
        }
    }
}
