internal import DriveBackupClient
internal import Glibc
internal import Synchronization

/// Before it counts, a run goes on for this long.
private let warmUp = Duration.milliseconds(300)

/// Keeps `calls` calls running on one connection and says how many ended in `seconds`, and how long they took.
func unary(_ socket: String, calls: Int, seconds: Int) async throws {
    let connection = try await RPCConnection.connect(to: .unix(path: socket))
    let start = ContinuousClock.now + warmUp
    let end = start + .seconds(seconds)
    let latencies = try await withThrowingTaskGroup(of: [Int64].self) { group in
        for _ in 0..<calls {
            group.addTask(executorPreference: connection.executor) {
                try await caller(connection, start, end)
            }
        }
        return try await group.reduce(into: []) { $0 += $1 }
    }.sorted()
    await connection.close()
    guard !latencies.isEmpty else { throw RPCStatus(.deadlineExceeded, "No call ended in time.") }
    func percentile(_ share: Double) -> Double {
        Double(latencies[min(latencies.count - 1, Int(Double(latencies.count) * share))]) / 1000
    }
    print(
        "{\"calls\": \(latencies.count), \"seconds\": \(seconds), \"p50_us\": \(percentile(0.5)), "
            + "\"p99_us\": \(percentile(0.99))}")
}

/// Makes one call after the other. The durations in nanoseconds of those that ended between `start` and `end`.
private func caller(
    _ connection: RPCConnection, _ start: ContinuousClock.Instant, _ end: ContinuousClock.Instant
) async throws -> [Int64] {
    var latencies: [Int64] = []
    let request = GetJobRequest(jobID: "backup-vm1-0001")
    var before = ContinuousClock.now
    while before < end {
        let job = try await connection.call(Bench.get, request)
        guard job.lastSequence == 4711 else { throw RPCStatus(.internal, "A wrong answer came.") }
        let now = ContinuousClock.now
        if now >= start, now < end {
            latencies.append(Int64((now - before).components.attoseconds / 1_000_000_000))
        }
        before = now
    }
    return latencies
}

/// Watches on one connection, the last watcher slowly; says how many events the fast ones got and how long it took.
func stream(_ socket: String, events: Int, watchers: Int) async throws {
    let connection = try await RPCConnection.connect(to: .unix(path: socket))
    let slow = Task {
        // It is cancelled, while it waits, when the others have all.
        for try await _ in try await watch(connection, events: events) {
            guard (try? await Task.sleep(for: .milliseconds(10))) != nil else { return }
        }
    }
    let start = ContinuousClock.now
    let delivered = try await withThrowingTaskGroup(of: Int.self) { group in
        for _ in 1..<watchers {
            group.addTask(executorPreference: connection.executor) {
                var count = 0
                for try await event in try await watch(connection, events: events) {
                    count += 1
                    guard event.sequence == UInt64(count) else {
                        throw RPCStatus(.internal, "An event is missing.")
                    }
                }
                return count
            }
        }
        return try await group.reduce(0, +)
    }
    let time = ContinuousClock.now - start
    slow.cancel()
    // What it throws is that it was cancelled.
    _ = await slow.result
    await connection.close()
    let seconds = Double(time.components.seconds) + Double(time.components.attoseconds) / 1e18
    print("{\"events\": \(delivered), \"seconds\": \(seconds)}")
}

private func watch(_ connection: RPCConnection, events: Int) async throws -> RPCResponses<JobEvent> {
    try await connection.stream(
        Bench.watch, WatchJobRequest(jobID: "backup-vm1-0001", afterSequence: UInt64(events)))
}

/// Opens `count` watchers of all events of a real agent, says so, and keeps them until it is killed.
func watch(_ count: Int, _ address: String) async throws {
    let address = try RPCAddress(parsing: address)
    var held: [(RPCConnection, RPCResponses<JobEvent>)] = []
    for _ in 0..<count {
        let connection = try await RPCConnection.connect(to: address)
        let events = try await connection.stream(AgentMethods.watchEvents, WatchEventsRequest())
        // The agent has taken the call when it has answered what came behind it.
        _ = try await connection.ping()
        held.append((connection, events))
    }
    print("{\"watchers\": \(held.count)}")
    fflush(nil)
    while true { try await Task.sleep(for: .seconds(3600)) }
}
