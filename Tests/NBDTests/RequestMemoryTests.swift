internal import BlockIO
internal import TestKit
internal import Testing

@testable internal import NBD

@Suite("Memory of requests")
struct RequestMemoryTests {
    private let piece = RequestMemory.maximumPiece
    private let memory = RequestMemory()

    /// Clients that hold a piece each, all the memory together.
    private func fill() throws -> [(account: RequestMemory.Account, buffer: IOBuffer)] {
        var holders: [(account: RequestMemory.Account, buffer: IOBuffer)] = []
        for _ in 0..<(64 << 20) / piece {
            let account = RequestMemory.Account()
            holders.append((account, try #require(memory.takeIfAvailable(piece, for: account))))
        }
        #expect(memory.used == 64 << 20)
        return holders
    }

    /// Begins to wait, and returns once it does.
    private func wait(_ count: Int, for account: RequestMemory.Account) async -> Task<IOBuffer?, Never> {
        let before = memory.waiting
        let task = Task { [memory] in await memory.take(count, for: account) }
        while memory.waiting == before { await Task.yield() }
        return task
    }

    @Test("a first request is as good as any other to the last byte of the memory")
    func firstRequests() throws {
        let holders = try fill()
        for holder in holders { memory.give(holder.buffer, from: holder.account) }
        #expect(memory.used == 0)
    }

    @Test("who has nothing is overtaken neither by newcomers nor by those who have something")
    func newcomers() async throws {
        let holders = try fill()
        let small = RequestMemory.Account()
        memory.give(holders[0].buffer, from: holders[0].account)
        let page = try #require(memory.takeIfAvailable(4096, for: small))
        let other = RequestMemory.Account()
        let otherPage = try #require(memory.takeIfAvailable(4096, for: other))
        let first = RequestMemory.Account()
        let second = RequestMemory.Account()
        let waitingFirst = await wait(piece, for: first)
        #expect(memory.isContended)
        // There is room for these.
        #expect(memory.takeIfAvailable(4096, for: small) == nil)
        #expect(memory.takeIfAvailable(4096, for: RequestMemory.Account()) == nil)
        let waitingSecond = await wait(4096, for: second)
        let waitingHolder = await wait(4096, for: other)
        #expect(memory.waiting == 3)

        memory.give(page, from: small)
        memory.give(holders[1].buffer, from: holders[1].account)
        let firstBuffer = try #require(await waitingFirst.value)
        #expect(firstBuffer.count == piece)
        memory.give(firstBuffer, from: first)
        let secondBuffer = try #require(await waitingSecond.value)
        let holderBuffer = try #require(await waitingHolder.value)
        memory.give(secondBuffer, from: second)
        memory.give(holderBuffer, from: other)
        memory.give(otherPage, from: other)
        for holder in holders.dropFirst(2) { memory.give(holder.buffer, from: holder.account) }
        #expect(memory.used == 0)
    }

    @Test("among busy clients the longest request waits for what they hold, not for what they ask for later")
    func busyClients() async throws {
        var generator = SeededGenerator(testSeed())
        for _ in 0..<testRounds(20) {
            let busy = (0..<40).map { _ in RequestMemory.Account() }
            var lent: [(account: RequestMemory.Account, buffer: IOBuffer)] = []
            func takeAll() {
                for account in busy.shuffled(using: &generator) {
                    for size in [piece, 1 << 20, 64 << 10, 4096] {
                        while let buffer = memory.takeIfAvailable(size, for: account) {
                            lent.append((account, buffer))
                        }
                    }
                }
            }
            func giveAny() {
                let (account, buffer) = lent.remove(at: Int.random(in: 0..<lent.count, using: &generator))
                memory.give(buffer, from: account)
            }
            // They earn credit until they hold nearly all there is.
            while memory.used <= (64 << 20) - piece {
                takeAll()
                for _ in 0..<lent.count / 2 { giveAny() }
                takeAll()
            }
            var waiting: [(account: RequestMemory.Account, task: Task<IOBuffer?, Never>)] = []
            for account in busy.prefix(5) where memory.held(by: account) > 0 {
                waiting.append((account, await wait(piece, for: account)))
            }
            let large = RequestMemory.Account()
            let asking = await wait(piece, for: large)
            while memory.held(by: large) == 0 {
                #expect((64 << 20) - memory.used < piece, "there is no room for it yet")
                for account in busy { try #require(memory.takeIfAvailable(4096, for: account) == nil) }
                giveAny()
            }
            memory.give(try #require(await asking.value), from: large)
            while !lent.isEmpty { giveAny() }
            for (account, task) in waiting { memory.give(try #require(await task.value), from: account) }
            #expect(memory.used == 0)
        }
    }

    @Test("when one that waited leaves, those behind it have what is there")
    func leaving() async throws {
        let holders = try fill()
        memory.give(holders[0].buffer, from: holders[0].account)
        let small = RequestMemory.Account()
        let page = try #require(memory.takeIfAvailable(4096, for: small))
        let first = RequestMemory.Account()
        let second = RequestMemory.Account()
        let waitingFirst = await wait(piece, for: first)
        let waitingSecond = await wait(4096, for: second)
        memory.close(first)
        #expect(await waitingFirst.value == nil)
        let buffer = try #require(await waitingSecond.value)
        memory.give(buffer, from: second)
        memory.give(page, from: small)
        for holder in holders.dropFirst() { memory.give(holder.buffer, from: holder.account) }
        #expect(memory.used == 0)
    }

    @Test("a large write is overtaken by no newcomer's, and one that waits for its own is in nobody's way")
    func large() async throws {
        let accounts = (0..<4).map { _ in RequestMemory.Account() }
        let most = try #require(memory.takeIfAvailable(32 << 20, for: accounts[0]))
        let some = try #require(memory.takeIfAvailable(16 << 20, for: accounts[1]))
        // More than half of the memory is nobody's.
        let own = await wait(32 << 20, for: accounts[0])
        #expect(!memory.isContended)
        let waiting = await wait(32 << 20, for: accounts[2])
        #expect(memory.takeIfAvailable(4 << 20, for: accounts[3]) == nil)
        memory.give(some, from: accounts[1])
        let buffer = try #require(await waiting.value)
        memory.give(buffer, from: accounts[2])
        memory.give(most, from: accounts[0])
        memory.give(try #require(await own.value), from: accounts[0])
        #expect(memory.used == 0)
    }
}
