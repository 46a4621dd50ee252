internal import BlockIO
internal import TestKit
internal import Testing

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
