internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("What is refused")
struct RefusalTests {
    /// A change of a good image's header that makes it a bad one.
    struct Damage: Sendable, CustomTestStringConvertible {
        var what: String
        var position: Int
        var bytes: [UInt8]
        var code: BlockError.Code
        /// What the message must mention.
        var word: String
        var testDescription: String { what }
    }

    static let damages: [Damage] = [
        Damage(what: "version 1", position: 4, bytes: [0, 0, 0, 1], code: .unsupported, word: "version 1"),
        Damage(what: "version 4", position: 4, bytes: [0, 0, 0, 4], code: .unsupported, word: "version 4"),
        Damage(
            what: "tiny clusters", position: 20, bytes: [0, 0, 0, 8], code: .corrupt, word: "cluster size"),
        Damage(
            what: "huge clusters", position: 20, bytes: [0, 0, 0, 22], code: .corrupt, word: "cluster size"),
        Damage(what: "encryption", position: 32, bytes: [0, 0, 0, 2], code: .unsupported, word: "encrypted"),
        Damage(what: "a corrupt image", position: 79, bytes: [2], code: .corrupt, word: "marked as corrupt"),
        Damage(what: "external data", position: 79, bytes: [4], code: .unsupported, word: "another file"),
        Damage(what: "an unknown feature", position: 78, bytes: [1], code: .unsupported, word: "number 8"),
        Damage(
            what: "a compression bit alone", position: 79, bytes: [8], code: .corrupt,
            word: "compression type"),
        Damage(
            what: "a compression type alone", position: 104, bytes: [1], code: .corrupt,
            word: "compression type"),
        Damage(
            what: "unknown compression", position: 104, bytes: [9], code: .unsupported,
            word: "compression type 9"),
        Damage(what: "wide refcounts", position: 96, bytes: [0, 0, 0, 7], code: .corrupt, word: "refcounts"),
        Damage(
            what: "a short header", position: 100, bytes: [0, 0, 0, 96], code: .corrupt, word: "96 bytes"),
        Damage(
            what: "an odd header", position: 100, bytes: [0, 0, 0, 109], code: .corrupt, word: "109 bytes"),
        Damage(what: "a large disk", position: 24, bytes: [1], code: .corrupt, word: "L1 table"),
        Damage(what: "a huge L1 table", position: 36, bytes: [0x7f], code: .corrupt, word: "32 MiB"),
        Damage(
            what: "an L1 table off its place", position: 47, bytes: [1], code: .corrupt,
            word: "L1 table is at"),
        Damage(
            what: "an L1 table far away", position: 42, bytes: [1], code: .corrupt, word: "end of the file"),
        Damage(
            what: "no L1 table", position: 40, bytes: [0, 0, 0, 0, 0, 0, 0, 0], code: .corrupt,
            word: "offset 0"),
        Damage(what: "a huge refcount table", position: 56, bytes: [1], code: .corrupt, word: "8 MiB"),
        Damage(
            what: "no refcount table", position: 56, bytes: [0, 0, 0, 0], code: .corrupt,
            word: "refcount table"),
        Damage(
            what: "a refcount table far away", position: 48, bytes: [1], code: .corrupt,
            word: "refcount table"),
        Damage(
            what: "a long backing name", position: 16, bytes: [0, 0, 9, 9], code: .corrupt, word: "2313 bytes"
        ),
        Damage(
            what: "a backing name elsewhere", position: 8, bytes: [0, 1], code: .corrupt, word: "outside"),
        Damage(what: "a long extension", position: 116, bytes: [0x7f], code: .corrupt, word: "extension"),
    ]

    @Test(
        "a header that breaks the rules is refused, saying why, for reading and as a target",
        arguments: damages)
    func headers(damage: Damage) async throws {
        let directory = try TemporaryDirectory()
        let (base, path) = (directory.file("base.raw"), directory.file("a.qcow2"))
        try write([UInt8](repeating: 1, count: 65536), to: base)
        try await qemuImg(["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path, "1M"])
        var image = try bytes(of: path)
        image.replaceSubrange(damage.position..<damage.position + damage.bytes.count, with: damage.bytes)
        try write(image, to: path)
        try await expectRefusal(path, .qcow2, damage.code, damage.word)
        try await onEngine { engine in
            let file = try await openForWriting(path, on: engine)
            let error = await #expect(throws: BlockError.self) {
                _ = try await TargetImage.openExisting(file, format: .qcow2)
            }
            #expect(error?.code == damage.code)
            try await file.close()
        }
        let unchanged = try bytes(of: path) == image
        #expect(unchanged)
    }

    @Test("a feature is called by the name that the image has for it")
    func featureName() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "1M"])
        var image = try bytes(of: path)
        // The first name of qemu-img's table becomes one for bit 8, which is then set.
        #expect(Array(image[112..<116]) == [0x68, 0x03, 0xf8, 0x57])
        image[121] = 8
        image.replaceSubrange(122..<130, with: Array("teleport".utf8))
        image[78] = 1
        try write(image, to: path)
        try await expectRefusal(path, .qcow2, .unsupported, "teleport")
    }

    @Test(
        "formats that can be told and are not ours are refused by name when probing",
        arguments: ["vmdk", "vdi", "vhdx", "vpc", "qed", "luks", "parallels", "qcow"])
    func foreign(format: String) async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a")
        let secret =
            format == "luks" ? ["--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10"] : []
        let arguments = ["create", "-q", "-f", format] + secret + [path, "4M"]
        guard try await qemuImg(arguments, expecting: nil).status == 0 else { return }
        try await expectRefusal(path, nil, .unsupported, format)
        // Said to be raw, it is raw.
        let found = try await readWithUs(path, format: .raw)
        let expected = try bytes(of: path)
        #expect(found == expected)
    }

    @Test("backing files that are not plain, missing, undescribed or not allowed are refused by name")
    func backing() async throws {
        let directory = try TemporaryDirectory()
        let (base, path) = (directory.file("base.raw"), directory.file("a.qcow2"))
        try write([UInt8](repeating: 0, count: 65536), to: base)
        for name in ["nbd://localhost/x", "json:{\"driver\":\"raw\"}", "file:\(base)"] {
            try await create(path, backing: name, format: "raw")
            try await expectRefusal(path, nil, .unsupported, "only plain files")
        }
        try await create(path, backing: "missing.raw", format: "raw")
        try await expectRefusal(path, nil, .notFound, "missing.raw")
        try await create(path, backing: base, format: nil)
        try await expectRefusal(path, nil, .unsupported, "qemu-img rebase")
        try await create(path, backing: base, format: "vmdk")
        try await expectRefusal(path, nil, .unsupported, "vmdk")
        try await create(path, backing: base, format: "raw")
        try await expectRefusal(path, nil, .denied, base, gate: .closed)
        try await create(path, backing: path, format: "qcow2")
        try await expectRefusal(path, nil, .corrupt, "comes back")
        try await create(directory.file("other.qcow2"), backing: path, format: "qcow2")
        try await create(path, backing: "other.qcow2", format: "qcow2")
        try await expectRefusal(path, nil, .corrupt, "comes back")
    }

    @Test("what is not any more what was allowed when it is opened is refused")
    func replaced() async throws {
        let directory = try TemporaryDirectory()
        let (base, other) = (directory.file("base.raw"), directory.file("other.raw"))
        for path in [base, other] { try write([UInt8](repeating: 0, count: 65536), to: path) }
        let path = directory.file("a.qcow2")
        try await create(path, backing: base, format: "raw")
        let gate = ImageGate { (asked: String) throws(BlockError) in
            guard asked == base else { throw BlockError(.denied, "Couldn't use \(asked)") }
            guard unlink(base) == 0, symlink(other, base) == 0 else {
                throw BlockError("Couldn't replace \(base)", errno: errno)
            }
        }
        try await expectRefusal(path, nil, .denied, "Couldn't use \(other)", gate: gate)
    }

    @Test("paths are bytes: a mark behind a slash does not hide it")
    func slashes() throws {
        let path = "/a/b\u{600}/\u{301}c"
        #expect(path.isAbsolutePath && path.splitAtLastSlash?.name == "\u{301}c")
        #expect(path.splitAtLastSlash?.directory == "/a/b\u{600}" && "/\u{301}c".isAbsolutePath)
        for (path, below) in [("/a", "/a"), ("/a/b", "/a"), ("/a/\u{301}b", "/a"), ("/b", "/")] {
            #expect(path.isAtOrBelow(below))
        }
        for (path, below) in [("/ab", "/a"), ("/", "/a"), ("/e\u{301}/b", "/\u{e9}")] {
            #expect(!path.isAtOrBelow(below))
        }
        let directory = try TemporaryDirectory()
        let place = try Directory(directory.path)
        for name in ["", "a/b", "b\u{600}/c", "/\u{301}c"] {
            #expect(throws: BlockError.self) { try place.create(name, mode: 0o600) }
        }
    }

    @Test("a backing file without recorded format is taken when it is a qcow2 image beyond doubt")
    func unrecordedQcow2() async throws {
        let directory = try TemporaryDirectory()
        let (base, path) = (directory.file("base.qcow2"), directory.file("a.qcow2"))
        try await qemuImg(["create", "-q", "-f", "qcow2", base, "1M"])
        try await qemuIO(base, ["write -P 3 0 64k"])
        try await create(path, backing: base, format: nil)
        let found = try await readWithUs(path)
        #expect(found.prefix(65536).allSatisfy { $0 == 3 })
    }

    @Test("a chain that is too deep is refused")
    func depth() async throws {
        let directory = try TemporaryDirectory()
        for index in 0...64 {
            if index == 0 {
                try await qemuImg(["create", "-q", "-f", "qcow2", directory.file("0"), "1M"])
            } else {
                try await create(directory.file("\(index)"), backing: "\(index - 1)", format: "qcow2")
            }
        }
        _ = try await readWithUs(directory.file("63"))
        try await expectRefusal(directory.file("64"), nil, .unsupported, "64 layers")
    }

    @Test("an image that another process writes is refused, and qemu-img cannot write ours")
    func locks() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "1M"])
        try await onEngine { engine in
            let image = try await whenUnlocked {
                try await OpenImage.open(path, format: nil, readOnly: false, gate: .closed, on: engine)
            }
            let writing = try await runProcess("qemu-io", ["-f", "qcow2", "-c", "write 0 4k", path])
            #expect(writing.status != 0 || writing.error.contains("lock"))
            try await qemuImg(["info", path])
            try await image.takeWritePermission()
            try await image.close()
            try await qemuIO(path, ["write 0 4k"])
        }
    }

    private func create(_ path: String, backing: String, format: String?) async throws {
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "1M"])
        let recorded = format.map { ["-F", $0] } ?? []
        // Without -F qemu-img refuses what it cannot open; written into the header it is as old images have it.
        if let format, ["raw", "qcow2"].contains(format) {
            try await qemuImg(["rebase", "-u", "-f", "qcow2", "-b", backing] + recorded + [path])
            return
        }
        var image = try bytes(of: path)
        let (start, name) = (1024, Array(backing.utf8))
        image.replaceSubrange(start..<start + name.count, with: name)
        image.replaceSubrange(8..<16, with: [0, 0, 0, 0, 0, 0, 4, 0])
        image.replaceSubrange(16..<20, with: [0, 0, UInt8(name.count / 256), UInt8(name.count % 256)])
        if let format {
            let text = Array(format.utf8)
            let head: [UInt8] = [0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, UInt8(text.count)]
            let padding = [UInt8](repeating: 0, count: 8 - text.count % 8 + 8)
            let ext = head + text + padding
            image.replaceSubrange(112..<112 + ext.count, with: ext)
        }
        try write(image, to: path)
    }

    private func expectRefusal(
        _ path: String, _ format: ImageFormat?, _ code: BlockError.Code, _ word: String,
        gate: ImageGate = .open,
        location: SourceLocation = #_sourceLocation
    ) async throws {
        try await onEngine { engine in
            do {
                let image = try await openImage(path, format: format, gate: gate, on: engine)
                try await image.close()
                Issue.record("It was opened, though \(word)", sourceLocation: location)
            } catch let error as BlockError {
                #expect(error.code == code, "\(error)", sourceLocation: location)
                #expect(error.message.contains(word), "\(error)", sourceLocation: location)
                #expect(error.message.contains(path), "\(error)", sourceLocation: location)
            }
        }
    }
}
