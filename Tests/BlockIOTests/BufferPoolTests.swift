internal import Glibc
internal import TestKit
internal import Testing

@testable internal import BlockIO

@Suite("Buffers")
struct BufferPoolTests {
    @Test("a pool never lends more than it has, across engines, and uses its memory again")
    func bound() async throws {
        let pool = BufferPool(capacity: 5 * 4096 + 4095, bufferSize: 4096)
        #expect(pool.maximumCount == 5)
        let engines: [any IOEngine] = try EngineKind.allCases.map { try $0.makeEngine(name: "pool") }
        let lent = Locked((now: 0, most: 0, seen: Set<ObjectIdentifier>()))
        await withTaskGroup(of: Void.self) { group in
            for index in 0..<200 {
                let engine = engines[index % engines.count]
                group.addTask {
                    await engine.run {
                        try? await pool.withBuffer { (buffer: IOBuffer) async throws(BlockError) in
                            lent.withLock {
                                $0.now += 1
                                $0.most = max($0.most, $0.now)
                                $0.seen.insert(ObjectIdentifier(buffer))
                            }
                            await Task.yield()
                            // Until all have been lent at the same time, none is given back.
                            while lent.withLock({ $0.most < 5 }) { await Task.yield() }
                            lent.withLock { $0.now -= 1 }
                        }
                    }
                }
            }
        }
        let result = lent.withLock { $0 }
        #expect(result.most == 5)
        #expect(result.seen.count == 5)
        for engine in engines { await engine.shutDown() }
    }

    @Test(
        "a pool that rests gives its shared memory back, what comes back later as well, until it is used",
        arguments: [false, true])
    func rest(prepared: Bool) async throws {
        let memory = try SharedMemory(count: 4 << 20)
        let pool = BufferPool(in: memory, bufferSize: 1 << 20)
        func used() -> Int {
            var status = stat()
            #expect(fstat(memory.descriptor, &status) == 0)
            return Int(status.st_blocks) * 512
        }
        func take() throws -> IOBuffer {
            let buffer = try #require(pool.takeIfAvailable())
            buffer.bytes.initializeMemory(as: UInt8.self, repeating: 7)
            return buffer
        }
        if prepared {
            pool.prepare()
            // One large page, or the small one where nothing larger was to be had.
            #expect([2 << 20, 4096].contains(used()))
        }
        let lent = [try take(), try take(), try take()]
        pool.give(lent[0])
        pool.give(lent[1])
        #expect(used() == 3 << 20)
        pool.rest()
        #expect(used() == 1 << 20)
        #expect(lent[2].bytes.allSatisfy { $0 == 7 }, "what is lent is as it was")
        pool.give(lent[2])
        #expect(used() == 0)
        let again = try take()
        pool.give(again)
        #expect(used() == 1 << 20, "a pool that is used keeps what it has")
    }

    @Test("who waits is served in order; who gives up is forgotten")
    func order() async throws {
        let pool = BufferPool(capacity: 4096, bufferSize: 4096)
        let engine = ThreadsEngine(name: "order")
        let buffer = try await pool.take()
        #expect(pool.takeIfAvailable() == nil)
        let served = Locked<[Int]>([])
        try await engine.run { () async throws(BlockError) in
            // One after the other, on one thread: each is waiting when the next starts.
            var tasks: [Task<Void, Never>] = []
            for number in 0..<5 {
                tasks.append(
                    Task(executorPreference: engine) {
                        do throws(BlockError) {
                            let buffer = try await pool.take()
                            served.withLock { $0.append(number) }
                            pool.give(buffer)
                        } catch {
                            served.withLock { $0.append(100 + number) }
                        }
                    })
                await Task.yield()
            }
            tasks[2].cancel()
            await tasks[2].value
            #expect(served.withLock { $0 } == [102])
            pool.give(buffer)
            for task in tasks { await task.value }
        }
        #expect(served.withLock { $0 } == [102, 0, 1, 3, 4])
        let again = try await pool.take()
        #expect(again === buffer)
        await engine.shutDown()
    }

    @Test("a task that was cancelled before it asks gets nothing")
    func cancelled() async throws {
        let pool = BufferPool(capacity: 4096, bufferSize: 4096)
        let task = Task { () async -> BlockError.Code? in
            withUnsafeCurrentTask { $0?.cancel() }
            do throws(BlockError) {
                _ = try await pool.take()
                return nil
            } catch {
                return error.code
            }
        }
        #expect(await task.value == .cancelled)
        #expect(pool.takeIfAvailable() != nil)
    }

    @Test(
        "a share gets three eighths, and half of what the others leave: who gives nothing back does not starve the next one"
    )
    func shares() throws {
        let pool = BufferPool(capacity: 32 * 4096, bufferSize: 4096)
        func takeAll(_ share: BufferShare) -> [IOBuffer] {
            var buffers: [IOBuffer] = []
            while let buffer = share.takeIfAvailable() { buffers.append(buffer) }
            return buffers
        }
        let (hung, other, third) = (pool.share(), pool.share(), pool.share())
        #expect(takeAll(hung).count == 12, "alone it may have three eighths")
        #expect(takeAll(other).count == 10, "half of what is left, and no more than that")
        let lent = takeAll(third)
        #expect(lent.count == 5)
        #expect(takeAll(pool.share()).count == 2)
        #expect(takeAll(pool.share()).count == 1)
        #expect(takeAll(pool.share()).count == 1)
        #expect(takeAll(pool.share()).count == 1, "the last one is for whoever has none")
        #expect(takeAll(pool.share()).isEmpty && pool.takeIfAvailable() == nil)
        for buffer in lent { third.give(buffer) }
        #expect(takeAll(third).count == 2)
        // The pool itself has no such limit.
        let rest = (0..<4).compactMap { _ in pool.takeIfAvailable() }
        #expect(rest.count == 3)
        let tiny = BufferPool(capacity: 4096, bufferSize: 4096).share()
        #expect(takeAll(tiny).count == 1, "one is always allowed")
    }

    @Test("two jobs whose targets hang with all they may hold leave enough for a third one to go on")
    func hungShares() async throws {
        let pool = BufferPool(capacity: 8 * 4096, bufferSize: 4096)
        let hung = [pool.share(), pool.share()]
        var stuck: [Task<Void, Never>] = []
        for share in hung {
            // More than it may have: these wait, before everybody else.
            while share.takeIfAvailable() != nil {}
            for _ in 0..<4 {
                stuck.append(
                    Task {
                        // Cancelled at the end.
                        _ = try? await share.take()
                    })
            }
        }
        let third = pool.share()
        let lent = Locked((now: 0, most: 0))
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<200 {
                group.addTask {
                    let buffer = try await third.take()
                    lent.withLock {
                        $0.now += 1
                        $0.most = max($0.most, $0.now)
                    }
                    await Task.yield()
                    lent.withLock { $0.now -= 1 }
                    third.give(buffer)
                }
            }
            try await group.waitForAll()
        }
        #expect(lent.withLock { $0.most } >= 1)
        for task in stuck { task.cancel() }
        for task in stuck { await task.value }
    }

    @Test("random users of shares never hold more than the pool has, and all get their turns")
    func randomShares() async throws {
        let seed = testSeed()
        let pool = BufferPool(capacity: 7 * 4096, bufferSize: 4096)
        let lent = Locked((now: 0, most: 0))
        await withTaskGroup(of: Void.self) { group in
            for user in 0..<5 {
                let share = pool.share()
                for worker in 0..<6 {
                    group.addTask {
                        var random = SeededGenerator(seed &+ UInt64(user * 100 + worker))
                        for _ in 0..<100 {
                            let asking = Task { try await share.take() }
                            if random.oneIn(5) { asking.cancel() }
                            guard let buffer = try? await asking.value else { continue }
                            lent.withLock {
                                $0.now += 1
                                $0.most = max($0.most, $0.now)
                            }
                            for _ in 0..<Int.random(in: 0...3, using: &random) { await Task.yield() }
                            lent.withLock { $0.now -= 1 }
                            share.give(buffer)
                        }
                    }
                }
            }
        }
        #expect(lent.withLock { $0.most } <= 7 && lent.withLock { $0.now } == 0)
        var all: [IOBuffer] = []
        while let buffer = pool.takeIfAvailable() { all.append(buffer) }
        #expect(all.count == 7 && Set(all.map(ObjectIdentifier.init)).count == 7, "each came back once")
    }

    @Test("zeroes are told from all else, at every place and alignment")
    func zeroes() {
        var generator = SeededGenerator(testSeed())
        let buffer = IOBuffer(count: 20_000)
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0)
        #expect(ZeroDetection.isZero(UnsafeRawBufferPointer(start: nil, count: 0)))
        for _ in 0..<3000 {
            let start = Int.random(in: 0..<8192, using: &generator)
            let count = Int.random(in: 0...10_000, using: &generator)
            let slice = buffer[start..<start + count].bytes
            #expect(ZeroDetection.isZero(slice))
            guard count > 0 else { continue }
            let place = Int.random(in: 0..<count, using: &generator)
            slice[place] = UInt8.random(in: 1...255, using: &generator)
            #expect(!ZeroDetection.isZero(slice))
            slice[place] = 0
            // Neighbours do not count.
            buffer.bytes[start + count] = 1
            #expect(ZeroDetection.isZero(slice))
            buffer.bytes[start + count] = 0
        }
    }
}
