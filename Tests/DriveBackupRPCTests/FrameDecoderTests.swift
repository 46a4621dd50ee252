import Testing

@testable import DriveBackupRPC

@Suite("Cutting bytes into frames")
struct FrameDecoderTests {
    private static func events(
        _ chunks: [[UInt8]], limit: Int = 1000
    ) throws -> (events: [FrameDecoder.Event], held: Int) {
        var decoder = FrameDecoder(limit: limit)
        var events: [FrameDecoder.Event] = []
        var held = 0
        for chunk in chunks {
            try chunk.withUnsafeBytes { chunk in
                var input = chunk
                while let event = try decoder.next(&input) { events.append(event) }
                #expect(input.isEmpty)
            }
            held = max(held, decoder.heldBytes)
        }
        return (events, held)
    }

    @Test("the same frames come out however the bytes arrive")
    func chunks() throws {
        var generator = SeededGenerator(testSeed())
        for _ in 0..<200 {
            var bytes: [UInt8] = []
            var expected: [FrameDecoder.Event] = []
            for _ in 0..<Int.random(in: 1...6, using: &generator) {
                let payload = [UInt8](repeating: 7, count: Int.random(in: 0...1200, using: &generator))
                let header = FrameHeader(
                    length: payload.count, stream: 5, type: .message, isEnd: Bool.random(using: &generator))
                header.append(to: &bytes)
                bytes += payload
                expected.append(payload.count > 1000 ? .oversize(header) : .frame(header, payload: payload))
            }
            var chunks: [[UInt8]] = []
            var rest = bytes[...]
            while !rest.isEmpty {
                let count = Int.random(in: 1...Int.random(in: 1...2000, using: &generator), using: &generator)
                chunks.append(Array(rest.prefix(count)))
                rest = rest.dropFirst(count)
            }
            #expect(try Self.events(chunks).events == expected)
            #expect(try Self.events(bytes.map { [$0] }).events == expected)
        }
    }

    @Test("a payload over the limit is skipped without being held")
    func oversize() throws {
        let chunk = [UInt8](repeating: 1, count: 1 << 20)
        let (events, held) = try Self.events(
            [raw(3, stream: 1, length: 100 << 20)] + Array(repeating: chunk, count: 100) + [
                raw(3, stream: 3, [9])
            ])
        #expect(
            events == [
                .oversize(FrameHeader(length: 100 << 20, stream: 1, type: .message)),
                .frame(FrameHeader(length: 1, stream: 3, type: .message), payload: [9]),
            ])
        #expect(held < 1000)
    }

    @Test("a promised payload takes no memory before it comes")
    func promised() throws {
        let (_, held) = try Self.events([raw(3, stream: 1, length: 4 << 20), [1, 2, 3]], limit: 4 << 20)
        #expect(held == 3)
    }

    @Test(
        "what is no header is refused",
        arguments: [
            (raw(0, stream: 1), "type"), (raw(10, stream: 1), "type"), (raw(255), "type"),
            (raw(3, stream: 1, flags: 2), "flags"), (raw(3, stream: 1, flags: 0x81), "flags"),
            (raw(3, stream: 1, reserved: 1), "reserved"), (raw(3, stream: 1, reserved: 0x100), "reserved"),
            (raw(3, stream: 1, length: .max), "beyond"), (raw(7, length: (256 << 20) + 1), "beyond"),
            (raw(3), "stream 0"), (raw(1, stream: 1), "stream 1"), (raw(7, stream: 2), "stream 2"),
            (Array("GET / HTTP/1.1\r\n\r\n".utf8), ""),
            (Array("\u{16}\u{03}\u{01}\u{02}\u{00}\u{01}\u{00}\u{01}\u{fc}\u{03}\u{03}".utf8), ""),
        ])
    func refused(bytes: [UInt8], word: String) {
        let error = #expect(throws: FramingError.self) { try Self.events([bytes]) }
        #expect(word.isEmpty || error?.problem.contains(word) == true)
    }
}
