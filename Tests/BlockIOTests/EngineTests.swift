internal import BlockIO
internal import Foundation
internal import Glibc
internal import TestKit
internal import Testing

@Suite("Engines")
struct EngineTests {
    @Test("of those that let others in one goes on in each turn of a ring, in the order in which they came")
    func oneInATurn() async throws {
        let engine = try EngineKind.ring.makeEngine(name: "turns")
        let went = Locked<[[Int]]>([])
        await engine.run {
            await withTaskGroup(of: Void.self) { group in
                for number in 1...4 {
                    group.addTask {
                        let turns = await engine.letOthersIn()
                        went.withLock { $0.append([number, turns]) }
                    }
                }
            }
        }
        #expect(went.value == [[1, 1], [2, 2], [3, 3], [4, 4]])
        await engine.shutDown()
    }

    /// As long as a pause may be.
    private static let longest: UInt64 = 999_999_999

    @Test("a pause lasts as long as was asked for when nothing happens, and nobody pauses elsewhere")
    func pauses() async throws {
        let engine = try EngineKind.ring.makeEngine(name: "pauses")
        let clock = ContinuousClock()
        let (wasWhole, took) = await engine.run {
            let begin = clock.now
            return (await engine.pause(nanoseconds: 2_000_000), clock.now - begin)
        }
        #expect(wasWhole && took >= .milliseconds(2))
        #expect(await !engine.pause(nanoseconds: Self.longest))
        engine.share()
        #expect(await engine.run { await !engine.pause(nanoseconds: Self.longest) })
        await engine.shutDown()
    }

    /// Each of ten pauses may be as long as that because the machine stands still; all are only when nothing ends them.
    @Test("a pause ends when the engine has something else to do", arguments: [true, false])
    func endOfPause(isCompletion: Bool) async throws {
        let engine = try EngineKind.ring.makeEngine(name: "pauses")
        let pair = try SocketPair()
        let wereWhole = Locked<[Bool]>([])
        for _ in 0..<10 {
            await withTaskGroup(of: Void.self) { group in
                let isPausing = Locked(false)
                group.addTask {
                    await engine.run {
                        let buffer = IOBuffer(count: 1)
                        async let got = engine.receive(pair.near, buffer.bytes, all: false)
                        await Task.yield()
                        isPausing.withLock { $0 = true }
                        let wasWhole = await engine.pause(nanoseconds: Self.longest)
                        wereWhole.withLock { $0.append(wasWhole) }
                        #expect(await got == 1)
                    }
                }
                while !isPausing.value { await Task.yield() }
                if !isCompletion { await engine.run {} }
                #expect(write(pair.far, "x", 1) == 1)
            }
        }
        #expect(wereWhole.value.contains(false))
        withExtendedLifetime(pair) {}
        await engine.shutDown()
    }

    /// What it does then has ended before who has let others in goes on.
    @Test("nobody pauses while others are let in", arguments: [true, false])
    func pausesBesideOthers(isFirst: Bool) async throws {
        let engine = try EngineKind.ring.makeEngine(name: "pauses")
        let pair = try SocketPair()
        #expect(write(pair.far, "x", 1) == 1)
        let went = Locked<[String]>([])
        await engine.run {
            await withTaskGroup(of: Void.self) { group in
                for isPause in [isFirst, !isFirst] {
                    group.addTask {
                        if isPause {
                            let buffer = IOBuffer(count: 1)
                            #expect(await !engine.pause(nanoseconds: Self.longest))
                            #expect(await engine.receive(pair.near, buffer.bytes, all: false) == 1)
                        } else {
                            _ = await engine.letOthersIn()
                        }
                        went.withLock { $0.append(isPause ? "pause" : "others") }
                    }
                }
            }
        }
        #expect(went.value == ["pause", "others"])
        withExtendedLifetime(pair) {}
        await engine.shutDown()
    }

    @Test("code that prefers an engine stays on its thread across awaits", arguments: EngineKind.allCases)
    func stays(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "stays")
        let file = try ScratchFile(bytes: 1 << 16)
        await engine.run {
            #expect(engine.isCurrent)
            let inner = await Probe.current(engine)
            #expect(inner)
            _ = await engine.blocking { !engine.isCurrent }
            #expect(engine.isCurrent)
            _ = await engine.synchronize(file.descriptor, dataOnly: true)
            #expect(engine.isCurrent)
            await withTaskGroup(of: Bool.self) { group in
                for _ in 0..<20 {
                    group.addTask {
                        await Task.yield()
                        _ = await engine.synchronize(file.descriptor, dataOnly: true)
                        return engine.isCurrent
                    }
                }
                for await isCurrent in group { #expect(isCurrent) }
            }
            async let other = Probe.current(engine)
            #expect(await other)
            do {
                try await Probe.throwing(engine)
            } catch {
                #expect(engine.isCurrent)
            }
        }
        #expect(!engine.isCurrent)
        await engine.shutDown()
    }

    @Test("an actor can live on an engine", arguments: EngineKind.allCases)
    func actors(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "actors")
        let file = try ScratchFile(bytes: 1 << 16)
        let actor = Pinned(engine)
        // Called from outside, from a task on the engine, and by many at once.
        #expect(await actor.use(file.descriptor) == 4096)
        await engine.run {
            let count = await actor.use(file.descriptor)
            #expect(count == 4096)
            #expect(engine.isCurrent)
        }
        await withTaskGroup(of: Void.self) { group in
            for _ in 0..<50 { group.addTask { _ = await actor.use(file.descriptor) } }
        }
        #expect(await actor.uses == 52)
        let ordinary = Counter()
        await engine.run {
            await ordinary.add()
            #expect(engine.isCurrent)
        }
        await engine.shutDown()
    }

    @Test(
        "a thousand tasks on an engine interleave and none loses its completion",
        arguments: EngineKind.allCases)
    func manyTasks(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "many")
        let file = try ScratchFile(bytes: 1 << 20)
        let maximum = Locked(0)
        let sums = await engine.run {
            let running = EngineIsolated(0, engine: engine)
            return await withTaskGroup(of: Int.self) { group in
                for index in 0..<1000 {
                    group.addTask {
                        running.value += 1
                        let now = running.value
                        maximum.withLock { $0 = max($0, now) }
                        defer { running.value -= 1 }
                        return await Self.readRepeatedly(engine, file.descriptor, first: index)
                    }
                }
                var sums: [Int] = []
                for await sum in group { sums.append(sum) }
                return sums
            }
        }
        #expect(sums.count == 1000)
        #expect(sums.allSatisfy { $0 == 10 * 512 })
        #expect(maximum.withLock { $0 } > 100)
        await engine.shutDown()
    }

    private static func readRepeatedly(_ engine: any IOEngine, _ descriptor: Int32, first: Int) async -> Int {
        let buffer = IOBuffer(count: 512)
        var sum = 0
        for step in 0..<10 {
            let block = (first * 7 + step * 131) % 2048
            sum += await engine.read(descriptor, buffer.bytes, at: UInt64(block) * 512)
            if buffer.bytes.loadUnaligned(as: UInt32.self) != UInt32(block) { return -1 }
            if step % 3 == 0 { await Task.yield() }
        }
        return sum
    }

    @Test("more requests than a ring holds wait for their turn")
    func overflow() async throws {
        let engine = try RingEngine(name: "small", queueDepth: 8)
        let file = try ScratchFile(bytes: 1 << 20)
        let sum = await engine.run {
            await withTaskGroup(of: Int.self) { group in
                for index in 0..<500 {
                    group.addTask { await Self.readRepeatedly(engine, file.descriptor, first: index) }
                }
                var sum = 0
                for await count in group { sum += count }
                return sum
            }
        }
        #expect(sum == 500 * 5120)
        await engine.shutDown()
    }

    @Test("jobs that keep an engine busy do not hold up completions", arguments: EngineKind.allCases)
    func noStarvation(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "busy")
        let file = try ScratchFile(bytes: 1 << 20)
        await engine.run {
            let isDone = EngineIsolated(false, engine: engine)
            await withTaskGroup(of: Void.self) { group in
                group.addTask { while !isDone.value { await Task.yield() } }
                group.addTask {
                    for index in 0..<50 {
                        _ = await Self.readRepeatedly(engine, file.descriptor, first: index)
                    }
                    _ = await engine.blocking { 1 }
                    isDone.value = true
                }
            }
        }
        await engine.shutDown()
    }

    @Test("errors come back as negated numbers", arguments: EngineKind.allCases)
    func errors(kind: EngineKind) async throws {
        let engine = try kind.makeEngine(name: "errors")
        await engine.run {
            let buffer = IOBuffer(count: 512)
            #expect(await engine.read(-1, buffer.bytes, at: 0) == Int(-EBADF))
            #expect(await engine.write(-1, UnsafeRawBufferPointer(buffer.bytes), at: 0) == Int(-EBADF))
            #expect(await engine.synchronize(-1, dataOnly: false) == Int(-EBADF))
            let range = ByteRange(offset: 0, length: 512)
            #expect(await engine.allocate(-1, mode: 0, range) == Int(-EBADF))
            #expect(await engine.synchronizeRange(-1, range, flags: 2) == Int(-EBADF))
        }
        await engine.shutDown()
    }

    @Test("hundreds of engines leave no thread and no descriptor behind", arguments: EngineKind.allCases)
    func shutDown(kind: EngineKind) async throws {
        let file = try ScratchFile(bytes: 4096)
        let before = try Self.engineDescriptors()
        for _ in 0..<500 {
            let engine = try kind.makeEngine(name: "brief")
            await engine.run {
                _ = await engine.synchronize(file.descriptor, dataOnly: true)
                _ = await engine.blocking { 0 }
            }
            await engine.shutDown()
        }
        // The last act of an engine's thread is to resume us; it may be on its way out. Other tests run beside this
        // one, so only what would be a leak counts: the threads that carry the name.
        while try Self.threads(named: "brief") > 0 { await Task.yield() }
        // A leak would be two descriptors for each of 500 rings.
        #expect(try Self.engineDescriptors() < before + 500)
    }

    /// How many descriptors of the kinds that engines use are open in this process.
    private static func engineDescriptors() throws -> Int {
        let numbers = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")
        // One that was closed meanwhile has no link to read.
        let links = numbers.compactMap {
            try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\($0)")
        }
        return links.count { $0.contains("[io_uring]") || $0.contains("[eventfd]") }
    }

    private static func threads(named name: String) throws -> Int {
        let tasks = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/task")
        // A thread that has ended meanwhile has no name to read.
        let names = tasks.map {
            (try? String(contentsOfFile: "/proc/self/task/\($0)/comm", encoding: .utf8)) ?? ""
        }
        return names.count { $0.contains(name) }
    }

    @Test("isolated state can be touched on its engine")
    func isolated() async throws {
        let engine = ThreadsEngine(name: "isolated")
        let state = EngineIsolated([1], engine: engine)
        await engine.run {
            state.value.append(2)
            #expect(state.withState { $0.count } == 2)
        }
        await #expect(processExitsWith: .failure) {
            let engine = ThreadsEngine(name: "isolated")
            _ = EngineIsolated(0, engine: engine).value
        }
        await engine.shutDown()
    }
}

private enum Probe {
    static func current(_ engine: any IOEngine) async -> Bool {
        await Task.yield()
        return engine.isCurrent
    }

    static func throwing(_ engine: any IOEngine) async throws {
        await Task.yield()
        if engine.isCurrent { throw CancellationError() }
    }
}

private actor Counter {
    private var count = 0
    func add() { count += 1 }
}

/// An actor whose code runs on an engine's thread.
private actor Pinned {
    nonisolated let engine: any IOEngine
    private(set) var uses = 0

    init(_ engine: any IOEngine) { self.engine = engine }

    nonisolated var unownedExecutor: UnownedSerialExecutor { engine.asUnownedSerialExecutor() }

    func use(_ descriptor: Int32) async -> Int {
        preconditionIsolated()
        uses += 1
        #expect(engine.isCurrent)
        let buffer = IOBuffer(count: 4096)
        let count = await engine.read(descriptor, buffer.bytes, at: 0)
        #expect(engine.isCurrent)
        preconditionIsolated()
        return count
    }
}

/// A temporary file whose every 512 bytes start with their number.
final class ScratchFile: Sendable {
    let directory: TemporaryDirectory
    let path: String
    let descriptor: Int32

    init(bytes: Int) throws {
        directory = try TemporaryDirectory()
        path = directory.file("scratch")
        var data = Data(count: bytes)
        data.withUnsafeMutableBytes { buffer in
            for block in 0..<bytes / 512 {
                buffer.storeBytes(of: UInt32(block), toByteOffset: block * 512, as: UInt32.self)
            }
        }
        try data.write(to: URL(fileURLWithPath: path))
        descriptor = open(path, O_RDWR | O_CLOEXEC)
        try #require(descriptor >= 0)
    }

    deinit { close(descriptor) }
}
