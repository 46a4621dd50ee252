import DriveBackupWire
import Foundation
import Synchronization
import Testing

@testable import DriveBackupRPC

@Suite("Calls over each transport")
struct CallTests {
    @Test("a unary call gets its answer", arguments: Reach.allCases)
    func unary(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let drive = try await connection.call(TestService.get, GetDriveRequest(id: "vm1"))
            #expect(drive.id == "vm1")
            await connection.close()
        }
    }

    @Test("a stream brings all its responses in order and ends", arguments: Reach.allCases)
    func streaming(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            var ids: [String] = []
            for try await drive in try await connection.stream(TestService.count, GetDriveRequest(id: "1000"))
            {
                ids.append(drive.id)
            }
            #expect(ids == (0..<1000).map { "\($0)" })
        }
    }

    @Test("responses that are written together arrive as if one by one", arguments: Reach.allCases)
    func pages(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            // More than there is credit for, empty ones among them, and one at the end that is too large.
            var lengths = (0..<3000).map { $0 % 7 == 0 ? 0 : $0 % 700 }
            for end in [0, 1, 256, 257, 3000, 3001] {
                if end == 3001 { lengths.append(5 << 20) }
                let request = GetDriveRequest(id: lengths[..<end].map(String.init).joined(separator: ","))
                var found: [Int] = []
                var failure: RPCStatus?
                do throws(RPCStatus) {
                    for try await drive in try await connection.stream(TestService.page, request) {
                        #expect(drive.id == "\(found.count)")
                        found.append(drive.file.utf8.count)
                    }
                } catch { failure = error }
                #expect(found == Array(lengths[..<min(end, 3000)]))
                #expect(failure?.code == (end == 3001 ? .resourceExhausted : nil))
            }
        }
    }

    @Test("an error brings its code, sentence, reason and subject", arguments: Reach.allCases)
    func errors(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let error = await #expect(throws: RPCStatus.self) {
                try await connection.call(TestService.fail, GetDriveRequest(id: "vm1"))
            }
            #expect(error?.code == .notFound)
            #expect(error?.message == "There is no drive vm1.")
            #expect(error?.reason == "DRIVE_NOT_FOUND")
            #expect(error?.subject == "vm1")
            let unknown = RPCMethod<GetDriveRequest, Drive>("test.Service/Nothing", isServerStreaming: false)
            let error2 = await #expect(throws: RPCStatus.self) {
                try await connection.call(unknown, GetDriveRequest())
            }
            #expect(error2?.code == .unimplemented)
            var request = BackupRequest()
            request.sync = SyncMode(rawValue: 77)
            let error3 = await #expect(throws: RPCStatus.self) {
                for try await _ in try await connection.stream(TestService.start, request) {}
            }
            #expect(error3?.code == .invalidArgument)
            #expect(error3?.message.contains("sync") == true)
            #expect(try await connection.call(TestService.get, GetDriveRequest(id: "a")).id == "a")
        }
    }

    @Test("metadata, the deadline and the peer reach the handler", arguments: Reach.allCases)
    func context(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let options = CallOptions(
                timeout: .seconds(1000), metadata: [RPCMetadata(key: "trace", value: "x1")])
            _ = try await connection.call(TestService.get, GetDriveRequest(), options: options)
            let context = try #require(running.service.seen.withLock { $0.contexts.first })
            #expect(context.metadata == options.metadata)
            let left = try ContinuousClock.now.duration(to: #require(context.deadline))
            #expect(left > .seconds(500) && left <= .seconds(1000))
            #expect(context.peer.isLoopback)
            switch reach {
            case .unix:
                #expect(context.peer.credentials?.processID == ProcessInfo.processInfo.processIdentifier)
            case .tcp: #expect(context.peer.address.hasPrefix("127.0.0.1:"))
            case .inProcess: #expect(context.peer.transport == .inProcess)
            }
        }
    }

    @Test("a deadline ends the call on both sides", arguments: Reach.allCases)
    func deadline(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let error = await #expect(throws: RPCStatus.self) {
                try await connection.call(
                    TestService.hang, GetDriveRequest(), options: CallOptions(timeout: .milliseconds(30)))
            }
            #expect(error?.code == .deadlineExceeded)
            await running.service.wait { $0.cancelled == 1 }
        }
    }

    @Test("cancelling the caller's task cancels the handler", arguments: Reach.allCases)
    func cancellation(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let task = Task { try await connection.call(TestService.hang, GetDriveRequest()) }
            await running.service.wait { $0.calls == 1 }
            task.cancel()
            let error = await #expect(throws: RPCStatus.self) { try await task.value }
            #expect(error?.code == .cancelled)
            await running.service.wait { $0.cancelled == 1 }
            #expect(try await connection.call(TestService.get, GetDriveRequest(id: "a")).id == "a")
        }
    }

    @Test(
        "a reader that never reads stops its own call only, and its end ends the handler",
        arguments: Reach.allCases)
    func neverReads(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            var responses: RPCResponses<Drive>? = try await connection.stream(
                TestService.endless, GetDriveRequest())
            for number in 0..<200 {
                let drive = try await connection.call(TestService.get, GetDriveRequest(id: "\(number)"))
                #expect(drive.id == "\(number)")
            }
            #expect(running.service.seen.withLock { $0.written } <= running.limits.initialCredit / 1000 + 1)
            // What was sent meanwhile is there, and more comes when it is taken.
            var iterator = responses?.makeAsyncIterator()
            for _ in 0..<2000 { #expect(try await iterator?.next()?.file.count == 1000) }
            iterator = nil
            #expect(responses != nil)
            responses = nil
            await running.service.wait { $0.cancelled == 1 }
        }
    }

    @Test("losing the connection cancels all handlers and fails all calls", arguments: Reach.allCases)
    func disconnection(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let errors = await withTaskGroup(of: RPCStatus?.self) { group in
                for _ in 0..<20 {
                    group.addTask {
                        do throws(RPCStatus) {
                            _ = try await connection.call(TestService.hang, GetDriveRequest())
                            return nil
                        } catch {
                            return error
                        }
                    }
                }
                await running.service.wait { $0.calls == 20 }
                await connection.close()
                return await group.reduce(into: []) { $0.append($1) }
            }
            #expect(errors.map { $0?.code } == Array(repeating: .unavailable, count: 20))
            await running.service.wait { $0.cancelled == 20 }
            let error = await #expect(throws: RPCStatus.self) {
                try await connection.call(TestService.get, GetDriveRequest())
            }
            #expect(error?.code == .unavailable)
        }
    }

    @Test("a server that stops lets calls end, and fails new ones", arguments: Reach.allCases)
    func shutDown(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let responses = try await connection.stream(TestService.endless, GetDriveRequest())
            var iterator = responses.makeAsyncIterator()
            _ = try await iterator.next()
            async let stopped: Void = running.server.shutDown(within: .seconds(1000))
            while connection.closed == nil { _ = try await iterator.next() }
            let error = await #expect(throws: RPCStatus.self) {
                try await connection.call(TestService.get, GetDriveRequest())
            }
            #expect(error?.code == .unavailable)
            #expect(error?.reason == "AGENT_STOPPING")
            for _ in 0..<1000 { _ = try await iterator.next() }
            responses.cancel()
            await stopped
            #expect(running.server.connections == 0)
            #expect(running.server.bytesInFlight == 0)
        }
    }

    @Test("200 calls at once on one connection get each its own answer", arguments: Reach.allCases)
    func manyAtOnce(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            try await withThrowingTaskGroup(of: Void.self) { group in
                for number in 0..<200 {
                    group.addTask {
                        let file = String(repeating: "\(number),", count: number * 20)
                        let drive = try await connection.call(
                            TestService.echo, AddDriveRequest(id: "\(number)", file: file))
                        #expect(drive.file == file)
                    }
                    group.addTask {
                        var count = 0
                        let request = GetDriveRequest(id: "\(number)")
                        for try await drive in try await connection.stream(TestService.count, request) {
                            #expect(drive.id == "\(count)")
                            count += 1
                        }
                        #expect(count == number)
                    }
                }
                try await group.waitForAll()
            }
            #expect(connection.openCalls == 0)
        }
    }

    @Test("10,000 calls after each other leave nothing behind", arguments: Reach.allCases)
    func manyInTurn(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            for number in 0..<10_000 {
                let drive = try await connection.call(TestService.echo, AddDriveRequest(id: "\(number)"))
                #expect(drive.id == "\(number)")
            }
            #expect(connection.openCalls == 0)
            await connection.close()
            await running.server.shutDown(within: .zero)
            #expect(running.server.runningHandlers == 0)
            #expect(running.server.bytesInFlight == 0)
        }
    }

    @Test("large requests and answers pass, too large ones fail alone", arguments: Reach.allCases)
    func large(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let file = String(repeating: "x", count: 4_000_000)
            #expect(try await connection.call(TestService.echo, AddDriveRequest(file: file)).file == file)
            let error = await #expect(throws: RPCStatus.self) {
                try await connection.call(TestService.echo, AddDriveRequest(file: file + file))
            }
            #expect(error?.code == .resourceExhausted)
            #expect(try await connection.call(TestService.get, GetDriveRequest(id: "a")).id == "a")
            #expect(try await connection.ping() > .zero)
        }
    }
}
