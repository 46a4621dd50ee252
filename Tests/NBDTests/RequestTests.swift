internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("Requests and replies")
struct RequestTests {
    private static let rules = RequestRules(
        size: 1 << 20, isReadOnly: false, minimumBlock: 1, hasStructuredReplies: true,
        hasAllocationContext: true, maximumUnfragmented: 2 << 20)

    private static func judge(
        _ type: UInt16, flags: UInt16 = 0, offset: UInt64 = 0, length: UInt32 = 512,
        _ change: (inout RequestRules) -> Void = { _ in }
    ) -> RequestRules.Verdict {
        var rules = rules
        change(&rules)
        return rules.judge(
            RequestHeader(
                flags: CommandFlags(rawValue: flags), type: type, cookie: 1, offset: offset, length: length))
    }

    /// The error of a refusal and the payload that is dropped.
    private static func refusal(_ verdict: RequestRules.Verdict) -> [UInt64]? {
        if case .refuse(let error, _, let payload) = verdict {
            [UInt64(error.rawValue), UInt64(payload)]
        } else {
            nil
        }
    }

    @Test("what is well-formed is served")
    func served() {
        #expect(Self.judge(0) == .serve(.read))
        #expect(Self.judge(0, flags: 1 | 4, offset: 1 << 20, length: 0) == .serve(.read))
        #expect(Self.judge(1, flags: 1, offset: (1 << 20) - 512) == .serve(.write))
        #expect(Self.judge(2, flags: 0xffff) == .disconnect)
        #expect(Self.judge(3, flags: 1, length: 0) == .serve(.flush))
        #expect(Self.judge(4, flags: 1, length: 1 << 20) == .serve(.trim))
        #expect(Self.judge(6, flags: 1 | 2 | 16, length: 1 << 20) == .serve(.writeZeroes))
        #expect(Self.judge(7, flags: 8) == .serve(.blockStatus))
        #expect(Self.judge(0, length: 32 << 20) { $0.size = 1 << 40 } == .serve(.read))
        #expect(Self.judge(1, length: 32 << 20) { $0.size = 1 << 40 } == .serve(.write))
        #expect(Self.judge(4, length: .max) { $0.size = 1 << 40 } == .serve(.trim))
        #expect(
            Self.judge(0, offset: 512, length: 100) {
                $0 = $0; $0.size = 612; $0.minimumBlock = 512
            } == .serve(.read))
    }

    @Test("what is not gets the error that it should, and its payload is dropped")
    func refused() {
        let notPermitted: UInt64 = 1, invalid: UInt64 = 22, noSpace: UInt64 = 28, overflow: UInt64 = 75
        // Unknown commands, and flags that do not belong.
        for type in [UInt16(5), 8, 9, 77, .max] { #expect(Self.refusal(Self.judge(type)) == [invalid, 0]) }
        for (type, flags) in [(UInt16(0), UInt16(2)), (3, 2), (4, 4), (6, 8), (7, 4), (0, 1 << 15)] {
            #expect(Self.refusal(Self.judge(type, flags: flags)) == [invalid, 0])
        }
        #expect(Self.refusal(Self.judge(1, flags: 2)) == [invalid, 512])
        #expect(Self.refusal(Self.judge(0, flags: 4) { $0.hasStructuredReplies = false }) == [invalid, 0])
        // Out of range.
        for offset in [UInt64(1 << 20), (1 << 20) - 511, .max, .max - 511] {
            #expect(Self.refusal(Self.judge(0, offset: offset)) == [invalid, 0])
            #expect(Self.refusal(Self.judge(4, offset: offset)) == [invalid, 0])
            #expect(Self.refusal(Self.judge(7, offset: offset)) == [invalid, 0])
            #expect(Self.refusal(Self.judge(1, offset: offset)) == [noSpace, 512])
            #expect(Self.refusal(Self.judge(6, offset: offset)) == [noSpace, 0])
        }
        for type in [UInt16(4), 6] {
            #expect(Self.refusal(Self.judge(type) { $0.isReadOnly = true }) == [notPermitted, 0])
        }
        #expect(Self.refusal(Self.judge(1) { $0.isReadOnly = true }) == [notPermitted, 512])
        #expect(Self.refusal(Self.judge(7) { $0.hasAllocationContext = false }) == [invalid, 0])
        #expect(Self.refusal(Self.judge(7, length: 0)) == [invalid, 0])
        #expect(
            Self.refusal(Self.judge(0, flags: 4, length: 3 << 20) { $0.size = 1 << 40 }) == [overflow, 0])
        #expect(Self.refusal(Self.judge(0, length: (32 << 20) + 1) { $0.size = 1 << 40 }) == [invalid, 0])
        #expect(
            Self.refusal(Self.judge(1, length: (32 << 20) + 1) { $0.size = 1 << 40 }) == [
                invalid, (32 << 20) + 1,
            ])
        #expect(Self.refusal(Self.judge(0, offset: 1) { $0.minimumBlock = 512 }) == [invalid, 0])
        #expect(Self.refusal(Self.judge(1) { $0.isEnding = true }) == [108, 512])
        if case .close = Self.judge(1, length: 64 << 20) {} else { Issue.record("an absurd payload") }
    }

    @Test("no header makes the rules fail")
    func fuzz() {
        var generator = SeededGenerator(testSeed())
        for _ in 0..<testRounds(20_000) {
            var bytes =
                RawClient.bytes(NBDProtocol.requestMagic)
                + (0..<24).map { _ in UInt8.random(in: 0...255, using: &generator) }
            bytes[6] = 0
            bytes[7] &= 7
            if generator.oneIn(2) { bytes[4...5] = [0, 0] }
            guard let header = bytes.withUnsafeBytes(RequestHeader.init) else {
                Issue.record("a good magic")
                continue
            }
            if case .serve(let command) = Self.rules.judge(header), command != .flush {
                #expect(header.offset + UInt64(header.length) <= 1 << 20)
            }
        }
        #expect([UInt8](repeating: 0, count: 28).withUnsafeBytes(RequestHeader.init) == nil)
    }

    @Test("replies look on the wire as they should")
    func replies() {
        let room = IOBuffer(count: Reply.maximumHead)
        func head(_ form: Reply.Form, isLast: Bool = true) -> [UInt8] {
            let count = Reply(cookie: 0x0102_0304_0506_0708, form: form, isLast: isLast).encodeHead(
                into: room.bytes)
            return Array(room.bytes[..<count])
        }
        let cookie: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
        #expect(head(.simple(nil)) == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0] + cookie)
        #expect(head(.simple(.noSpace)) == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28] + cookie)
        #expect(head(.none) == [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0] + cookie + [0, 0, 0, 0])
        let data = IOBuffer(count: 4096)
        #expect(
            head(.data(offset: 0x1_0000, data[0..<512]), isLast: false) == [
                0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 1,
            ] + cookie
                + [0, 0, 2, 8] + [0, 0, 0, 0, 0, 1, 0, 0])
        #expect(
            head(.error(.inputOutput, "ab")) == [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1] + cookie + [
                0, 0, 0, 8,
            ]
                + [0, 0, 0, 5, 0, 2, 97, 98])
        #expect(
            head(.status([(512, []), (1 << 30, [.hole, .zero])])) == [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5]
                + cookie
                + [0, 0, 0, 20] + [0, 0, 0, 1] + [0, 0, 2, 0, 0, 0, 0, 0] + [0x40, 0, 0, 0, 0, 0, 0, 3])
        let most = head(.status(Array(repeating: (1, []), count: Reply.maximumExtents)))
        #expect(most.count <= Reply.maximumHead)
        #expect(head(.error(.invalid, String(repeating: "x", count: 5000))).count <= Reply.maximumHead)
    }
}
