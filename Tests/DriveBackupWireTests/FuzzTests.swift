internal import DriveBackupWire
internal import TestKit
internal import Testing

@Suite("Decoding anything")
struct FuzzTests {
    /// With the address sanitizer, and DRIVE_BACKUP_HISTORIES at some 100,000, it is worth an hour now and then.
    @Test("mutated messages are refused, or decoded to something that comes back as it was")
    func mutations() throws {
        var generator = SeededGenerator(testSeed())
        var accepted = 0
        let rounds = testRounds(20_000)
        for _ in 0..<rounds {
            let type = allMessages[generator.below(allMessages.count)]
            if try mutate(type, &generator) { accepted += 1 }
        }
        print("accepted \(accepted) of \(rounds)")
        #expect(accepted > rounds / 100 && accepted < rounds)
    }

    private func mutate<M: WireMessage>(_ type: M.Type, _ generator: inout SeededGenerator) throws -> Bool {
        var bytes = try M.random(&generator).encode()
        for _ in 0...generator.below(4) { try Mutation.apply(to: &bytes, &generator) }
        let limits: WireLimits = generator.oneIn(2) ? .request : .response
        let message: M
        do throws(WireError) {
            message = try M.decode(bytes, limits: limits)
        } catch {
            #expect(!error.message.isEmpty && error.messageName == M.messageName)
            #expect(error.problem != "the message could not be unpacked", "WireCheck let it pass: \(bytes)")
            return false
        }
        let again = try M.decode(message.encode(), limits: limits)
        #expect(again == message)
        #expect(!message.json().isEmpty)
        return true
    }
}

/// What can happen to bytes.
enum Mutation {
    static func apply(to bytes: inout [UInt8], _ generator: inout SeededGenerator) throws {
        let place = generator.below(bytes.count + 1)
        switch generator.below(8) {
        case 0 where place < bytes.count: bytes[place] ^= 1 << UInt8(generator.below(8))
        case 1 where place < bytes.count: bytes[place] = [0, 1, 0x7f, 0x80, 0xff][generator.below(5)]
        case 2: bytes.insert(contentsOf: generator.bytes(generator.below(6)), at: place)
        case 3: bytes.removeSubrange(place..<min(bytes.count, place + generator.below(6)))
        case 4: bytes.removeSubrange(place...)
        case 5 where place < bytes.count:
            let end = min(bytes.count, place + generator.below(40))
            bytes.insert(contentsOf: bytes[place..<end], at: generator.below(bytes.count + 1))
        case 6:
            // Another message behind: fields twice, messages merged, other cases of a oneof.
            bytes += try JobEvent.random(&generator).encode()
        default:
            // A field of any number and wire type, well formed more often than not.
            bytes.insert(contentsOf: field(&generator), at: generator.oneIn(2) ? bytes.count : place)
        }
    }

    private static func field(_ generator: inout SeededGenerator) -> [UInt8] {
        let type = generator.below(8)
        let tag = varint(UInt64(generator.below(30) << 3 | type))
        switch type {
        case 0: return tag + varint(generator.oneIn(2) ? generator.next() : UInt64(generator.below(10)))
        case 1: return tag + generator.bytes(8)
        case 2:
            let content = generator.bytes(generator.below(12)).map { generator.oneIn(3) ? $0 : $0 & 0x1f }
            return tag + varint(UInt64(content.count)) + content
        case 5: return tag + generator.bytes(4)
        default: return tag
        }
    }

    private static func varint(_ value: UInt64) -> [UInt8] {
        var rest = value
        var bytes: [UInt8] = []
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        return bytes + [UInt8(rest)]
    }
}
