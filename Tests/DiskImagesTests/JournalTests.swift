internal import BlockIO
internal import Foundation
internal import TestKit
internal import Testing

@testable internal import DiskImages

@Suite("The journal of a qcow2 drive")
struct JournalTests {
    /// An image as a killed agent leaves it, with a journal that holds what is not in it yet.
    private struct Killed {
        let directory: TemporaryDirectory
        let path: String
        let journal: String
        let before: [UInt8]
        let after: [UInt8]
    }

    private func kill() async throws -> Killed {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "2M"])
        try await qemuIO(path, ["write -P 5 0 256k"])
        let before = try await judge(path, in: directory)
        let left = try await onEngine { engine in
            let options = Qcow2Options(role: .drive, journalDirectory: directory.path)
            let drive = try await openDrive(path, options: options, on: engine)
            let buffer = IOBuffer(count: 100_000)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 9)
            try await drive.device.write(ByteRange(offset: 700_000, length: 100_000), from: buffer.slice)
            try await drive.device.discard(ByteRange(offset: 65536, length: 65536))
            let name = try #require(
                try FileManager.default.contentsOfDirectory(atPath: directory.path).first {
                    $0.hasSuffix(".journal")
                })
            let journal = directory.file(name)
            let left = (journal, try bytes(of: path), try bytes(of: journal))
            try await drive.close()
            return left
        }
        // The file stays the same one.
        try write(left.1, to: path)
        try write(left.2, to: left.0)
        var after = before
        after.replaceSubrange(65536..<131_072, with: repeatElement(0, count: 65536))
        after.replaceSubrange(700_000..<800_000, with: repeatElement(9, count: 100_000))
        return Killed(directory: directory, path: path, journal: left.0, before: before, after: after)
    }

    private func open(_ killed: Killed, readOnly: Bool = false) async throws -> (
        note: String?, contents: [UInt8]
    ) {
        try await onEngine { engine in
            let image = try await whenUnlocked {
                try await OpenImage.open(
                    killed.path, format: .qcow2, readOnly: readOnly, gate: .open,
                    journalDirectory: killed.directory.path, on: engine)
            }
            let found = try await contents(of: image.device)
            try await image.close()
            return (image.recoveryNote, found)
        }
    }

    private func refusal(_ killed: Killed, readOnly: Bool = false) async -> BlockError? {
        do { _ = try await open(killed, readOnly: readOnly) } catch { return error as? BlockError }
        return nil
    }

    private func change(_ killed: Killed, _ body: (inout [UInt8]) -> Void) throws {
        var journal = try bytes(of: killed.journal)
        body(&journal)
        try write(journal, to: killed.journal)
    }

    @Test("what a killed agent had answered is put into the image, which is clean then")
    func replay() async throws {
        let killed = try await kill()
        try expectEqual(try await judge(killed.path, in: killed.directory), killed.before, "before")
        let opened = try await open(killed)
        try expectEqual(opened.contents, killed.after, "after")
        #expect(try #require(opened.note).contains("replayed"))
        try await checkClean(killed.path)
        try expectEqual(
            try await judge(killed.path, in: killed.directory), killed.after, "qemu-img's reading")
        #expect(!FileManager.default.fileExists(atPath: killed.journal))
    }

    @Test("a kill while the next reserve is counted leaks nothing of it")
    func killWhileCounting() async throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("a.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", path, "8M"])
        // Its one L2 table is there: a new one that is in no L1 table yet would be leaked.
        try await qemuIO(path, ["write -P 5 0 64k"])
        let moments = try await onEngine { engine in
            var options = Qcow2Options(role: .drive, journalDirectory: directory.path)
            options.reserveBytes = 1 << 20
            let drive = try await openDrive(path, options: options, on: engine)
            let buffer = IOBuffer(count: 65536)
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 9)
            var moments: [(image: [UInt8], journal: [UInt8])] = []
            var journal = ""
            for cluster in 0..<16 {
                try await drive.device.write(
                    ByteRange(offset: UInt64(cluster) * 65536, length: 65536), from: buffer.slice)
                if journal.isEmpty {
                    let names = try FileManager.default.contentsOfDirectory(atPath: directory.path)
                    journal = directory.file(try #require(names.first { $0.hasSuffix(".journal") }))
                }
                // The task that counts goes on from await to await. What it asked for is done when the image is looked
                // at, and it does not know yet.
                for _ in 0..<8 {
                    usleep(1000)
                    moments.append((try bytes(of: path), try bytes(of: journal)))
                    await Task.yield()
                }
            }
            try await drive.close()
            return (journal, moments)
        }
        for (image, journal) in moments.1 {
            try write(image, to: path)
            try write(journal, to: moments.0)
            try await onEngine { engine in
                let image = try await whenUnlocked {
                    try await OpenImage.open(
                        path, format: .qcow2, readOnly: false, gate: .open, journalDirectory: directory.path,
                        on: engine)
                }
                try await image.close()
            }
            try await checkClean(path)
        }
    }

    @Test("an image with a journal is not opened for reading only, and the refusal says what to do")
    func readOnly() async throws {
        let killed = try await kill()
        let refusal = try #require(await refusal(killed, readOnly: true))
        #expect(refusal.code == .denied)
        #expect(refusal.message.contains(killed.journal))
        #expect(refusal.message.contains("open it for writing"))
        try expectEqual(try await open(killed).contents, killed.after, "after")
        try expectEqual(try await open(killed, readOnly: true).contents, killed.after, "for reading")
    }

    @Test("an image with a journal is not opened as a backing file either, until it was opened as a drive")
    func backing() async throws {
        let killed = try await kill()
        let overlay = killed.directory.file("overlay.qcow2")
        try await qemuImg(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", killed.path, overlay])
        let chain = Killed(
            directory: killed.directory, path: overlay, journal: killed.journal, before: killed.before,
            after: killed.after)
        let refusal = try #require(await refusal(chain))
        #expect(refusal.code == .denied)
        #expect(refusal.message.contains(killed.journal) && refusal.message.contains(overlay))
        try expectEqual(try await open(killed).contents, killed.after, "as a drive")
        try expectEqual(try await open(chain).contents, killed.after, "as a backing file")
    }

    @Test("a journal from before the host's last start is worth nothing and goes away, with a word about it")
    func otherBoot() async throws {
        let killed = try await kill()
        try change(killed) { $0[64] ^= 1 }
        try expectEqual(try await open(killed, readOnly: true).contents, killed.before, "for reading")
        let opened = try await open(killed)
        try expectEqual(opened.contents, killed.before, "the image alone")
        #expect(try #require(opened.note).contains("started again"))
        #expect(!FileManager.default.fileExists(atPath: killed.journal))
    }

    @Test(
        "a journal of an image that another program has written since is given up, and that is told",
        arguments: [false, true])
    func changedByOthers(repairs: Bool) async throws {
        let killed = try await kill()
        if repairs {
            try await qemuImg(["check", "-q", "-r", "leaks", killed.path], expecting: nil)
        } else {
            try await qemuIO(killed.path, ["write -P 7 500k 64k"])
        }
        let now = try await judge(killed.path, in: killed.directory)
        try expectEqual(try await open(killed, readOnly: true).contents, now, "for reading")
        let opened = try await open(killed)
        try expectEqual(opened.contents, now, "the image alone")
        let note = try #require(opened.note)
        #expect(note.contains("another program") && note.contains("lost"))
        #expect(!FileManager.default.fileExists(atPath: killed.journal))
        try expectEqual(try await open(killed).contents, now, "once more")
    }

    @Test("a journal whose image was removed does not stand in the way of another one with its inode number")
    func reusedNumber() async throws {
        let killed = try await kill()
        try change(killed) { $0[56] ^= 1 }
        var image = try bytes(of: killed.path)
        image[88] = 0
        try write(image, to: killed.path)
        let opened = try await open(killed)
        try expectEqual(opened.contents, killed.before, "the image alone")
        #expect(try #require(opened.note).contains("removed"))
        #expect(!FileManager.default.fileExists(atPath: killed.journal))
    }

    @Test("the bit in the header that vouches for a journal is there before it and goes with it")
    func headerBit() async throws {
        let killed = try await kill()
        let path = killed.path
        #expect(try bytes(of: path)[88..<96].elementsEqual([128, 0, 0, 0, 0, 0, 0, 0]))
        try await qemuImg(["info", "-f", "qcow2", path])
        // It finds the reserve, as clusters that nothing refers to.
        try await qemuImg(["check", "-q", path], expecting: 3)
        try await qemuImg(["compare", "-q", path, path])
        #expect(try bytes(of: path)[88] == 128, "who only reads leaves it")
        _ = try await open(killed)
        #expect(try bytes(of: path)[88..<96].allSatisfy { $0 == 0 })
    }

    @Test("a journal that does not fit its image is refused and kept", arguments: [0, 1, 2, 3])
    func misfits(kind: Int) async throws {
        let killed = try await kill()
        switch kind {
        case 0: try change(killed) { $0[24] ^= 1 }  // another size
        case 1: try change(killed) { $0[12288 + 32 + 9] ^= 1 }  // a record
        case 2: try change(killed) { $0[56] ^= 1 }  // another file with its number
        default:
            // Places that the image does not count, although its header still vouches for the journal.
            try await qemuImg(["check", "-q", "-r", "leaks", killed.path], expecting: nil)
            var image = try bytes(of: killed.path)
            image[88] = 128
            try write(image, to: killed.path)
        }
        let before = try bytes(of: killed.path)
        let refusal = try #require(await refusal(killed))
        #expect(refusal.code == .corrupt)
        #expect(refusal.message.contains(killed.journal))
        #expect(FileManager.default.fileExists(atPath: killed.journal))
        let isUnchanged = try bytes(of: killed.path) == before
        #expect(isUnchanged)
    }

    @Test("an unfinished journal is replaced")
    func unfinished() async throws {
        let killed = try await kill()
        try change(killed) { journal in for index in 120..<128 { journal[index] = 0 } }
        try expectEqual(try await open(killed).contents, killed.before, "the image alone")
    }

    @Test("a record counts from the store of its number on, and slots are used again")
    func log() throws {
        let directory = try TemporaryDirectory()
        let identity = MappingJournal.Identity(
            file: FileIdentity(fileOn: 1, inode: 2), birthTime: 3, size: 1 << 30, clusterBits: 16,
            l1Offset: 65536)
        let file = try MappingJournal.create(in: directory.path, for: identity, bootID: "boot", records: 8)
        func reopened() throws -> MappingJournal {
            let found = try MappingJournal.examine(file, for: identity, bootID: "boot", isMarked: true)
            guard case .journal(let journal) = found
            else { throw TestKitError("no journal") }
            return journal
        }
        var journal = try reopened()
        var generator = SeededGenerator(testSeed())
        var alive: [MappingJournal.Record] = []
        for step in 0..<500 {
            if journal.room > 0, !generator.oneIn(3) {
                let record = MappingJournal.Record(
                    firstCluster: generator.next() >> 20, count: generator.next() & 0xffff_ffff,
                    entry: generator.next())
                journal.append(record)
                alive.append(record)
            } else {
                let count = Int.random(in: 0...alive.count, using: &generator)
                journal.release(upTo: journal.tail + UInt64(count))
                alive.removeFirst(count)
            }
            #expect(try reopened().records == alive, "step \(step)")
            #expect(try reopened().next == journal.next)
        }
        // The words of a record whose number was not stored yet.
        guard journal.room > 0 else { return }
        let slot = 12288 + Int(journal.next % 8) * 32
        for index in 0..<24 { file.bytes[slot + index] = 0xee }
        #expect(try reopened().records == alive)
    }

    @Test("what is left of a reserve is what was not taken")
    func reserve() throws {
        let directory = try TemporaryDirectory()
        let identity = MappingJournal.Identity(
            file: FileIdentity(fileOn: 1, inode: 2), birthTime: 3, size: 1 << 30, clusterBits: 16,
            l1Offset: 65536)
        let file = try MappingJournal.create(in: directory.path, for: identity, bootID: "boot", records: 8)
        let found = try MappingJournal.examine(file, for: identity, bootID: "boot", isMarked: true)
        guard case .journal(let journal) = found
        else {
            throw TestKitError("no journal")
        }
        #expect(journal.reserve.isEmpty)
        for _ in 0..<3 {
            journal.setReserve([
                .init(clusters: 10..<14, isUnused: true), .init(clusters: 20..<21, isUnused: false),
            ])
            journal.noteTaken(3)
            #expect(
                journal.reserve == [
                    .init(clusters: 13..<14, isUnused: true), .init(clusters: 20..<21, isUnused: false),
                ])
            journal.noteTaken(2)
            #expect(journal.reserve.isEmpty)
        }
    }
}

@Suite("Sets and moments")
struct Qcow2PartTests {
    @Test("runs of clusters are the set of what was put in")
    func runs() {
        var generator = SeededGenerator(testSeed())
        var (runs, model) = (ClusterRuns(), Set<UInt64>())
        for _ in 0..<2000 {
            let start = UInt64.random(in: 0..<200, using: &generator)
            let range = start..<start + UInt64.random(in: 0..<8, using: &generator)
            let missing = runs.missing(from: range)
            #expect(missing.flatMap(Array.init) == range.filter { !model.contains($0) })
            if generator.oneIn(3) {
                let taken = runs.takeLast(UInt64.random(in: 1..<9, using: &generator), runs: 3)
                for part in taken { for cluster in part { #expect(model.remove(cluster) != nil) } }
            } else {
                for part in missing { runs.insert(part) }
                model.formUnion(range)
            }
            #expect(runs.runs.flatMap(Array.init) == model.sorted())
            #expect(zip(runs.runs, runs.runs.dropFirst()).allSatisfy { $0.upperBound < $1.lowerBound })
        }
    }

    @Test("a moment has passed when all requests have ended that began before it")
    func tickets() {
        var generator = SeededGenerator(testSeed())
        var tickets = RequestTickets()
        var active: [(ticket: UInt64, begin: Int)] = []
        var moments: [(moment: UInt64, time: Int)] = []
        for time in 0..<3000 {
            switch Int.random(in: 0..<5, using: &generator) {
            case 0, 1: active.append((tickets.begin(), time))
            case 2, 3:
                guard !active.isEmpty else { continue }
                tickets.end(active.remove(at: Int.random(in: 0..<active.count, using: &generator)).ticket)
            default: moments.append((tickets.now(), time))
            }
            for (moment, told) in moments.suffix(20) {
                let hasPassed = !active.contains { $0.begin < told }
                #expect(tickets.haveEnded(before: moment) == hasPassed)
            }
        }
    }
}
