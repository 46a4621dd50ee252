import DriveBackupWire
import Synchronization
import Testing

@testable import DriveBackupRPC

@Suite("Callers on a connection's loop, and what they have not taken yet")
struct LoopTests {
    @Test(
        "tasks on the connection's loop call, stream, wait and cancel like others", arguments: Reach.allCases)
    func executor(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            try await withThrowingTaskGroup(of: Void.self) { group in
                for number in 0..<40 {
                    group.addTask(executorPreference: connection.executor) {
                        for round in 0..<25 {
                            let id = "\(number) \(round)"
                            let drive = try await connection.call(TestService.get, GetDriveRequest(id: id))
                            #expect(drive.id == id)
                        }
                        var count = 0
                        let request = GetDriveRequest(id: "500")
                        for try await drive in try await connection.stream(TestService.count, request) {
                            #expect(drive.id == "\(count)")
                            count += 1
                        }
                        #expect(count == 500)
                    }
                }
                try await group.waitForAll()
            }
            let task = Task(executorPreference: connection.executor) {
                try await connection.call(TestService.hang, GetDriveRequest())
            }
            await running.service.wait { $0.calls == 1001 }
            task.cancel()
            let error = await #expect(throws: RPCStatus.self) { try await task.value }
            #expect(error?.code == .cancelled)
            await running.service.wait { $0.cancelled == 1 }
            #expect(connection.openCalls == 0)
        }
    }

    @Test("a cancelled stream throws, also when more has come than was taken", arguments: Reach.allCases)
    func dropped(reach: Reach) async throws {
        try await withServer(reach) { running in
            let connection = try await running.connect()
            let responses = try await connection.stream(TestService.endless, GetDriveRequest(id: "e"))
            var iterator = responses.makeAsyncIterator()
            _ = try await iterator.next()
            // The server has filled the window: there is more in the iterator or behind it.
            await running.service.wait { $0.written >= 100 }
            _ = try await iterator.next()
            responses.cancel()
            let error = await #expect(throws: RPCStatus.self) { _ = try await iterator.next() }
            #expect(error?.code == .cancelled)
            await running.service.wait { $0.cancelled == 1 }
            #expect(try await connection.call(TestService.get, GetDriveRequest(id: "a")).id == "a")
        }
    }

    @Test(
        "a server holds what a slow reader has credit for, and goes on as it takes", arguments: Reach.allCases
    )
    func window(reach: Reach) async throws {
        var limits = RPCLimits()
        limits.initialCredit = 20_000
        try await withServer(reach, limits: limits) { running in
            let connection = try await running.connect()
            var iterator = try await connection.stream(TestService.endless, GetDriveRequest(id: "e"))
                .makeAsyncIterator()
            // Thirty windows, each of about twenty messages.
            for _ in 0..<600 { #expect(try await iterator.next()?.id == "e") }
            // Never more than a window ahead, and the one message that may overdraw it.
            #expect(running.service.seen.withLock { $0.written } <= 600 + 21)
        }
    }
}
