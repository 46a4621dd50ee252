internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@Suite("Mapped files")
struct MappedFileTests {
    @Test("what was stored is there for who opens the file next, and is gone once it is removed")
    func storing() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("record")
        do {
            let file = try MappedFile.create(path, length: 20_000, allocated: 8192)
            #expect(file.bytes.allSatisfy { $0 == 0 })
            file.bytes[4097] = 7
            file.store(0x0102_0304_0506_0708, at: 8)
            try file.allocate(8192..<20_000)
            file.bytes[19_999] = 9
        }
        let file = try MappedFile.open(path)
        #expect(file.length == 20_000)
        #expect(file.bytes[4097] == 7)
        #expect(file.bytes[19_999] == 9)
        #expect(file.load(at: 8) == 0x0102_0304_0506_0708)
        try file.deallocate(4096..<8192)
        #expect(file.bytes[4097] == 0)
        try file.remove()
        try file.remove()
        #expect(file.bytes[19_999] == 9)
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test("no file is made over another, through a link, or without room")
    func refusals() throws {
        let directory = try TemporaryDirectory()
        let (path, link) = (directory.file("record"), directory.file("link"))
        _ = try MappedFile.create(path, length: 4096)
        try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: path)
        func code(_ body: () throws -> MappedFile) -> BlockError.Code? {
            do { _ = try body() } catch { return (error as? BlockError)?.code }
            return nil
        }
        #expect(code { try .create(path, length: 4096) } == .alreadyExists)
        #expect(code { try .create(link, length: 4096) } == .alreadyExists)
        #expect(code { try .open(link) } == .invalid)
        #expect(code { try .open(directory.file("none")) } == .notFound)
        #expect(code { try .open(directory.path) } != nil)
        #expect(
            code { try .create(directory.file("large"), length: 1 << 60, allocated: 1 << 60) } == .noSpace)
        #expect(!FileManager.default.fileExists(atPath: directory.file("large")))
        #expect(FileManager.default.createFile(atPath: directory.file("empty"), contents: nil))
        #expect(code { try .open(directory.file("empty")) } == .corrupt)
    }
}
