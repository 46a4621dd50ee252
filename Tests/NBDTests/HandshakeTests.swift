internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("The handshake")
struct HandshakeTests {
    private static let facts: [HandshakeMachine.ExportFacts] = [
        HandshakeMachine.ExportFacts(
            id: 1, name: "first", description: "one", size: 1 << 40, flags: [.hasFlags, .sendFlush],
            minimumBlock: 1),
        HandshakeMachine.ExportFacts(
            id: 2, name: "zwölf", description: "", size: 7, flags: [.hasFlags, .readOnly], minimumBlock: 512),
    ]

    private static func machine() -> HandshakeMachine { HandshakeMachine { facts } }

    private static func option(_ number: UInt32, _ data: [UInt8] = []) -> [UInt8] {
        RawClient.bytes(NBDProtocol.optionMagic) + RawClient.bytes(number)
            + RawClient.bytes(UInt32(data.count))
            + data
    }

    private static func go(_ name: String, _ infos: [UInt16] = [], option number: UInt32 = 7) -> [UInt8] {
        option(
            number,
            RawClient.string(name) + RawClient.bytes(UInt16(infos.count)) + infos.flatMap(RawClient.bytes))
    }

    private static let flags = RawClient.bytes(UInt32(3))

    /// What a machine says to bytes that come all at once: options replied to, and how it ends.
    private static func run(_ bytes: [UInt8]) -> (
        replies: [(option: UInt32, type: UInt32)], end: HandshakeMachine.Action?
    ) {
        var machine = machine()
        let actions = machine.receive(bytes)
        var said: [UInt8] = []
        var end: HandshakeMachine.Action?
        for action in actions {
            if case .send(let bytes) = action { said += bytes } else { end = action }
        }
        var reader = ByteReader(said[...])
        var replies: [(UInt32, UInt32)] = []
        while let magic = reader.integer(UInt64.self), magic == NBDProtocol.optionReplyMagic,
            let option = reader.integer(UInt32.self), let type = reader.integer(UInt32.self),
            let length = reader.integer(UInt32.self)
        {
            replies.append((option, type))
            for _ in 0..<length { _ = reader.integer(UInt8.self) }
        }
        return (replies, end)
    }

    private static func transmits(_ id: UInt64, structured: Bool = false, context: Bool = false)
        -> HandshakeMachine.Action
    {
        .transmit(
            HandshakeMachine.Agreement(
                exportID: id, hasStructuredReplies: structured, hasAllocationContext: context))
    }

    @Test("a whole conversation comes out the same however its bytes are cut")
    func cuts() {
        let setContext = Self.option(
            10,
            RawClient.string("first") + RawClient.bytes(UInt32(2)) + RawClient.string("qemu:x")
                + RawClient.string("base:allocation"))
        let conversation =
            Self.flags + Self.option(3) + Self.option(99, [1, 2, 3]) + Self.option(5) + Self.option(8)
            + Self.option(9, RawClient.string("first") + RawClient.bytes(UInt32(0))) + setContext
            + Self.go("nobody") + Self.go("zwölf", option: 6) + Self.go("first", [1, 2, 3])
        let rest: [UInt8] = [1, 2, 3, 4]
        var whole = Self.machine()
        let expected = whole.receive(conversation + rest)
        #expect(expected.last == Self.transmits(1, structured: true, context: true))
        #expect(whole.leftover == rest)
        for size in [1, 2, 3, 5, 7, 16, 17] {
            var machine = Self.machine()
            var actions: [HandshakeMachine.Action] = []
            var position = 0
            while position < conversation.count {
                let end = min(position + size, conversation.count)
                actions += machine.receive(conversation[position..<end])
                position = end
            }
            #expect(actions == expected, "in pieces of \(size)")
        }
    }

    @Test("what cannot be served is refused, and the conversation goes on")
    func refusals() {
        let cases: [(UInt32, [UInt8], OptionReply)] = [
            (5, [], .unsupported), (11, [], .unsupported), (4, [1], .unsupported), (0, [], .unsupported),
            (3, [1], .invalid), (8, [1], .invalid),
            (7, [], .invalid), (7, [0, 0, 0, 9], .invalid), (7, RawClient.string("first"), .invalid),
            (7, RawClient.string("first") + [0, 1], .invalid),
            (7, RawClient.string("first") + [0, 0, 0], .invalid),
            (7, RawClient.bytes(UInt32(2)) + [0xff, 0xff, 0, 0], .invalid),
            (7, RawClient.bytes(UInt32.max) + [0, 0], .invalid),
            (7, RawClient.string("none") + [0, 0], .unknown),
            (6, RawClient.string("none") + [0, 0], .unknown),
            (10, RawClient.string("first") + RawClient.bytes(UInt32(0)), .invalid),
            (9, RawClient.string("first") + RawClient.bytes(UInt32(0)), .invalid),
            (6, [UInt8](repeating: 1, count: 70_000), .tooBig),
            (77, [UInt8](repeating: 1, count: 70_000), .tooBig),
        ]
        for (number, data, reply) in cases {
            let (replies, end) = Self.run(Self.flags + Self.option(number, data) + Self.go("first"))
            #expect(
                replies.first?.option == number && replies.first?.type == reply.rawValue, "option \(number)")
            #expect(end == Self.transmits(1), "option \(number)")
        }
    }

    @Test("contexts need structured replies, and count for the export they were set for")
    func contexts() {
        func set(_ name: String, _ queries: [String]) -> [UInt8] {
            Self.option(
                10,
                RawClient.string(name) + RawClient.bytes(UInt32(queries.count))
                    + queries.flatMap(RawClient.string))
        }
        let start = Self.flags + Self.option(8)
        let good = start + set("first", ["base:allocation"])
        #expect(Self.run(good + Self.go("first")).end == Self.transmits(1, structured: true, context: true))
        #expect(Self.run(good + Self.go("")).end == Self.transmits(1, structured: true, context: true))
        #expect(Self.run(good + Self.go("zwölf")).end == Self.transmits(2, structured: true))
        #expect(
            Self.run(good + set("first", ["base:x"]) + Self.go("first")).end
                == Self.transmits(1, structured: true))
        #expect(
            Self.run(good + set("first", []) + Self.go("first")).end == Self.transmits(1, structured: true))
        // A wildcard lists and does not set.
        #expect(
            Self.run(start + set("first", ["base:"]) + Self.go("first")).end
                == Self.transmits(1, structured: true))
        let listed = Self.run(
            start
                + Self.option(
                    9, RawClient.string("first") + RawClient.bytes(UInt32(1)) + RawClient.string("base:")))
        #expect(listed.replies.map(\.type) == [1, 4, 1])
    }

    @Test("old clients get what they expect", arguments: [UInt32(1), 3])
    func exportName(flags: UInt32) {
        var machine = Self.machine()
        let actions = machine.receive(RawClient.bytes(flags) + Self.option(1, Array("zwölf".utf8)))
        let zeroes = [UInt8](repeating: 0, count: flags & 2 == 0 ? 124 : 0)
        #expect(
            actions == [
                .send(RawClient.bytes(UInt64(7)) + RawClient.bytes(UInt16(3)) + zeroes), Self.transmits(2),
            ])
        #expect(Self.run(RawClient.bytes(flags) + Self.option(1)).end == Self.transmits(1))
        #expect(Self.run(RawClient.bytes(flags) + Self.option(1, [65])).end == .close(.unknownExport("A")))
    }

    @Test("a client that is done, or talks garbage, is let go")
    func endings() {
        #expect(Self.run(Self.flags + Self.option(2)).end == .close(.aborted))
        func isGarbage(_ bytes: [UInt8]) -> Bool {
            if case .close(.garbage) = Self.run(bytes).end { true } else { false }
        }
        #expect(isGarbage(RawClient.bytes(UInt32(4))))
        #expect(isGarbage(Self.flags + [UInt8](repeating: 9, count: 16)))
        #expect(isGarbage(Self.flags + Array(Self.option(6).dropLast(4)) + [0xff, 0xff, 0xff, 0xff]))
        #expect(isGarbage(Self.flags + (0..<2000).flatMap { _ in Self.option(3) }))
        #expect(isGarbage(Self.flags + Self.option(1, [UInt8](repeating: 65, count: 5000))))
    }

    @Test("no garbage makes it fail, keep much, or say more than a little")
    func fuzz() {
        var generator = SeededGenerator(testSeed())
        for _ in 0..<testRounds(3000) {
            var bytes = Self.flags
            for _ in 0..<Int.random(in: 0..<6, using: &generator) {
                let number = UInt32.random(in: 0..<13, using: &generator)
                var data = (0..<Int.random(in: 0..<40, using: &generator)).map { _ in
                    UInt8.random(in: 0...255, using: &generator)
                }
                if generator.oneIn(2) { data = RawClient.string("first") + RawClient.bytes(UInt16(0)) + data }
                bytes += Self.option(number, data)
            }
            for _ in 0..<Int.random(in: 0..<4, using: &generator) where bytes.count > 4 {
                bytes[Int.random(in: 0..<bytes.count, using: &generator)] = UInt8.random(
                    in: 0...255, using: &generator)
            }
            var machine = Self.machine()
            var position = 0
            var isOver = false
            while position < bytes.count {
                let end = min(position + Int.random(in: 1...64, using: &generator), bytes.count)
                for action in machine.receive(bytes[position..<end]) {
                    switch action {
                    case .send(let said): #expect(said.count < 20_000)
                    case .transmit, .close: isOver = true
                    }
                }
                if isOver { break }
                position = end
                #expect(machine.leftover.count <= HandshakeMachine.maximumOption + 64)
            }
        }
    }
}
