import BackupJobs
import BlockIO
import DiskImages
import TestKit
import Testing

@testable import BackupAgent

@Suite("Manifests as text")
struct ManifestTests {
    private func random(_ random: inout SeededGenerator) -> Manifest {
        let size = UInt64.random(in: 0...(1 << 41), using: &random)
        let algorithm = DigestAlgorithm.allCases.randomElement(using: &random) ?? .xxh3
        var content = ContentDigests(algorithm: algorithm, driveSize: size)
        var next = 0
        while next < content.extentCount {
            next += Int.random(in: 0...3, using: &random) * (content.extentCount / 40 + 1)
            guard next < content.extentCount else { break }
            if Bool.random(using: &random) {
                let end = min(content.extentCount, next + Int.random(in: 1...50, using: &random))
                content.entries.append(.zeroes(next..<end))
                next = end
            } else {
                let digest = (0..<algorithm.length).map { _ in UInt8.random(in: 0...255, using: &random) }
                let count = content.blocks(of: next).count
                var covered: [Range<Int>]?
                if count > 1, Bool.random(using: &random) {
                    let step = Int.random(in: 2...9, using: &random)
                    covered = stride(from: 0, to: count, by: step).map { $0..<min(count, $0 + step - 1) }
                }
                content.entries.append(.extent(.init(number: next, digest: digest, covered: covered)))
                next += 1
            }
        }
        var manifest = Manifest(
            id: Manifest.makeID(), job: "j\"ö\n\u{1}", drive: "vm1", target: "/t\\x\u{1F600}", format: .qcow2,
            sync: Bool.random(using: &random) ? .top : .none, size: size,
            pointInTime: Int64.random(in: 0...Int64.max, using: &random))
        manifest.state = .complete
        manifest.content = content
        if Bool.random(using: &random) {
            manifest.parent = .init(path: "/base", format: .raw, id: Bool.random(using: &random) ? "x" : nil)
        }
        if size > 8192 {
            manifest.missing = [ByteRange(0..<4096), ByteRange(8191..<8192)]
            manifest.missingBytes = 4097
        }
        return manifest
    }

    @Test("what is written is read again as it was")
    func roundTrip() throws {
        let seed = testSeed()
        var generator = SeededGenerator(seed)
        for _ in 0..<testRounds(200) {
            let manifest = random(&generator)
            #expect(try Manifest(decoding: manifest.encoded) == manifest, "seed \(seed)")
            var partial = manifest
            partial.state = .partial
            partial.content = nil
            #expect(try Manifest(decoding: partial.encoded) == partial, "seed \(seed)")
        }
    }

    @Test("a clone has no digests, says so, and is a full backup to a raw image; nothing else may lack them")
    func cloned() throws {
        var generator = SeededGenerator(testSeed())
        var manifest = random(&generator)
        (manifest.isCloned, manifest.content, manifest.format, manifest.sync) = (true, nil, .raw, .full)
        #expect(try Manifest(decoding: manifest.encoded) == manifest)
        manifest.format = .qcow2
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded) }
        (manifest.format, manifest.sync) = (.raw, .top)
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded) }
        (manifest.isCloned, manifest.sync) = (false, .full)
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded) }
    }

    @Test("an id is a UUID of its own")
    func ids() {
        let ids = (0..<100).map { _ in Manifest.makeID() }
        #expect(Set(ids).count == 100)
        #expect(
            ids.allSatisfy {
                $0.wholeMatch(of: #/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}/#)
                    != nil
            })
    }

    @Test("a manifest that was changed anywhere is refused or differs, and ends nobody")
    func mutations() throws {
        let seed = testSeed()
        var generator = SeededGenerator(seed)
        for _ in 0..<testRounds(300) {
            let manifest = random(&generator)
            var bytes = manifest.encoded
            switch Int.random(in: 0..<3, using: &generator) {
            case 0: bytes.removeLast(Int.random(in: 2...bytes.count, using: &generator))
            case 1:
                bytes.insert(
                    UInt8.random(in: 0...255, using: &generator),
                    at: Int.random(in: 0..<bytes.count, using: &generator))
            default:
                let index = Int.random(in: 0..<bytes.count, using: &generator)
                bytes[index] ^= 1 << UInt8.random(in: 0..<8, using: &generator)
            }
            do throws(Manifest.Malformed) {
                let read = try Manifest(decoding: bytes)
                // White space, or a letter of a name nobody knows.
                #expect(read != manifest || bytes.count >= manifest.encoded.count, "seed \(seed)")
            } catch {
                #expect(!error.reason.isEmpty)
            }
        }
    }

    @Test(
        "hostile texts are refused",
        arguments: [
            "", "{", "[]", "null", "{}", String(repeating: "[", count: 1_000_000),
            String(repeating: "{\"a\":", count: 100_000), "{\"manifest\":1}",
            "{\"manifest\":\"drive-backup\"}",
            "{\"manifest\":\"drive-backup\",\"version\":2}",
            "{\"manifest\":\"drive-backup\",\"version\":1.5}",
            "{\"manifest\":\"drive-backup\",\"version\":99999999999999999999}",
            "{\"manifest\":\"\\ud800\"}", "{\"manifest\":\"a", "{\"a\":1,\"a\":1}",
            "[" + String(repeating: "0,", count: 2_000_000) + "0]",
        ])
    func hostile(text: String) {
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: Array(text.utf8)) }
    }

    @Test("numbers that do not belong together are refused")
    func nonsense() throws {
        var generator = SeededGenerator(1)
        var manifest = random(&generator)
        manifest.size = 10 << 20
        var content = ContentDigests(algorithm: .xxh3, driveSize: 10 << 20)
        content.entries = [
            .zeroes(0..<3),
            .extent(.init(number: 3, digest: [UInt8](repeating: 7, count: 16), covered: [0..<2, 5..<6])),
        ]
        manifest.content = content
        (manifest.missing, manifest.missingBytes) = ([], 0)
        // Both ways to say which blocks are covered.
        #expect(try Manifest(decoding: manifest.encoded) == manifest)
        let text = String(decoding: manifest.encoded, as: UTF8.self)
            .replacing("\"bitmap\":\"2300\"", with: "\"blocks\":\"0-1,5\"")
        #expect(try Manifest(decoding: Array(text.utf8)) == manifest)
        let changes = [
            ("\"extent_size\":1048576", "\"extent_size\":1048577"),
            ("\"extent_size\":1048576", "\"extent_size\":0"),
            ("\"extent_size\":1048576", "\"extent_size\":4096"), ("\"block_size\":65536", "\"block_size\":1"),
            ("\"length\":3145728", "\"length\":3145727"), ("\"length\":3145728", "\"length\":20971520"),
            ("\"length\":3145728", "\"length\":4194304"), ("\"offset\":0", "\"offset\":1"),
            ("\"offset\":3145728", "\"offset\":104857600"), ("\"blocks\":\"0-1,5\"", "\"blocks\":\"0-1,16\""),
            ("\"blocks\":\"0-1,5\"", "\"blocks\":\"5,0-1\""), ("\"blocks\":\"0-1,5\"", "\"blocks\":\"-\""),
            ("\"blocks\":\"0-1,5\"", "\"bitmap\":\"000\""), ("\"blocks\":\"0-1,5\"", "\"bitmap\":\"0000\""),
            ("0707", "07"), ("0707", "07zz"), ("xxh3-128", "sha-256"), ("\"complete\"", "\"whole\""),
            ("\"size\":10485760", "\"size\":-1"), ("\"size\":10485760", "\"size\":9007199254740992"),
        ]
        for (old, new) in changes {
            guard let place = text.firstRange(of: old) else {
                Issue.record("\(old) is not there")
                continue
            }
            let changed = text.replacingCharacters(in: place, with: new)
            #expect(throws: Manifest.Malformed.self, "\(new)") { try Manifest(decoding: Array(changed.utf8)) }
        }
    }

    /// Of a drive of 10 MiB and a bit: zeroes, and two extents with digests.
    private func full() -> Manifest {
        let size: UInt64 = 10 << 20 | 512
        var manifest = Manifest(
            id: Manifest.makeID(), job: "j", drive: "vm1", target: "/t", format: .raw, sync: .full,
            size: size,
            pointInTime: 1)
        let digest = [UInt8](repeating: 7, count: 16)
        manifest.content = ContentDigests(
            algorithm: .xxh3, driveSize: size,
            entries: [
                .zeroes(0..<3), .extent(.init(number: 3, digest: digest)), .zeroes(4..<10),
                .extent(.init(number: 10, digest: digest)),
            ])
        manifest.state = .complete
        return manifest
    }

    @Test("of sync full every block has a digest, or something of it is missing")
    func allCovered() throws {
        let whole = full()
        #expect(try Manifest(decoding: whole.encoded) == whole)
        let entries = try #require(whole.content).entries
        let cuts = entries.indices.map { index in
            entries.enumerated().filter { $0.offset != index }.map(\.element)
        }
        for cut in cuts + [[]] {
            var manifest = whole
            manifest.content?.entries = cut
            #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded) }
            manifest.sync = .top
            #expect(try Manifest(decoding: manifest.encoded) == manifest)
        }
        // Blocks 2, 7, 8 and 15 of the fourth extent, one by one and all.
        let blocks = [2..<3, 7..<9, 15..<16]
        let start: UInt64 = 3 << 20
        var partly = whole
        partly.content?.entries[1] = .extent(
            .init(number: 3, digest: [UInt8](repeating: 7, count: 16), covered: [0..<2, 3..<7, 9..<15]))
        partly.missing = blocks.map {
            ByteRange(start + UInt64($0.lowerBound) << 16 + 4096..<start + UInt64($0.upperBound) << 16 - 4096)
        }
        partly.missingBytes = partly.missing.reduce(0) { $0 + $1.length }
        #expect(try Manifest(decoding: partly.encoded) == partly)
        for index in partly.missing.indices {
            var manifest = partly
            manifest.missing.remove(at: index)
            #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded) }
        }
        partly.missing[1] = ByteRange(offset: start + 7 << 16, length: 65536)
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: partly.encoded) }
        // Where more is missing than is listed, what is missing is not known.
        var cut = whole
        cut.content?.entries.removeLast()
        cut.missing = (0..<Manifest.mostMissing).map { ByteRange(offset: UInt64($0) * 2, length: 1) }
        cut.missingBytes = UInt64(cut.missing.count)
        #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: cut.encoded) }
        cut.missingBytes += 512
        #expect(try Manifest(decoding: cut.encoded) == cut)
    }

    @Test(
        "extents that are larger than a drive's ever are, are refused: their digests would be in memory at once"
    )
    func extentsTooLarge() throws {
        var manifest = full()
        (manifest.size, manifest.sync) = (15 << 40, .top)
        let extent = ContentDigests.Entry.extent(.init(number: 0, digest: [UInt8](repeating: 7, count: 16)))
        for shift in [29, 30, 31, 44] {
            manifest.content = ContentDigests(
                algorithm: .xxh3, driveSize: 15 << 40, extentSize: 1 << shift, entries: [extent])
            if shift <= 30 {
                #expect(try Manifest(decoding: manifest.encoded) == manifest)
            } else {
                #expect(throws: Manifest.Malformed.self) { try Manifest(decoding: manifest.encoded) }
            }
        }
    }

    @Test("what is covered stands there in the shorter of its two ways")
    func shorterWay() throws {
        var manifest = full()
        (manifest.size, manifest.sync) = (15 << 40, .top)
        // 16,384 blocks are 4,096 digits; five of a number and its comma are six.
        for (count, isBitmap) in [(682, false), (684, true)] {
            let covered = (0..<count).map { 10000 + $0 * 2..<10001 + $0 * 2 }
            manifest.content = ContentDigests(
                algorithm: .xxh3, driveSize: 15 << 40,
                entries: [
                    .extent(.init(number: 1, digest: [UInt8](repeating: 7, count: 16), covered: covered))
                ])
            let bytes = manifest.encoded
            #expect(String(decoding: bytes, as: UTF8.self).contains("\"bitmap\"") == isBitmap, "\(count)")
            #expect(try Manifest(decoding: bytes) == manifest)
        }
    }

    @Test(
        "whatever is covered of 16 TiB, what is written is read again, and fits the messages to a target's process"
    )
    func worstCase() throws {
        let size: UInt64 = 16 << 40
        var manifest = full()
        (manifest.size, manifest.sync) = (size, .top)
        manifest.missing = (0..<Manifest.mostMissing).map {
            ByteRange(offset: size - UInt64(Manifest.mostMissing - $0) * 4096, length: 2048)
        }
        manifest.missingBytes = UInt64.max >> 1
        manifest.content = ContentDigests(algorithm: .sha256, driveSize: size)
        let rest = manifest.encoded.count
        let covered = stride(from: 0, to: 16384, by: 2).map { $0..<$0 + 1 }
        let digest = [UInt8](repeating: 7, count: 32)
        manifest.content?.entries = (0..<8).map {
            .extent(.init(number: 16376 + $0, digest: digest, covered: covered))
        }
        let extents = manifest.encoded.count - rest
        let all = rest + extents * (16384 / 8)
        #expect(all <= Manifest.largest)
        #expect((Manifest.largest + 2) / 3 * 4 < TargetFrame.bound)
        #expect(try Manifest(decoding: manifest.encodedWithinBounds()) == manifest)
    }

    @Test("what nobody would read again is not written")
    func tooLarge() throws {
        var manifest = full()
        manifest.missing = [ByteRange](
            repeating: ByteRange(offset: 1 << 51, length: 1 << 50), count: 2_000_000)
        manifest.missingBytes = 1
        let error = #expect(throws: BlockError.self) { try manifest.encodedWithinBounds() }
        #expect(error?.message.contains("manifest of /t") == true)
    }

    @Test("what stands for a device's path has no slash, and is another for each path")
    func deviceNames() {
        #expect(ManifestPlace.name(ofDevice: "/dev/vg/vm1") == "dev%2Fvg%2Fvm1")
        #expect(ManifestPlace.name(ofDevice: "/dev/vg%2Fvm1") == "dev%2Fvg%252Fvm1")
    }
}

extension String {
    fileprivate func replacingCharacters(in range: Range<String.Index>, with text: String) -> String {
        self[..<range.lowerBound] + text + self[range.upperBound...]
    }
}
