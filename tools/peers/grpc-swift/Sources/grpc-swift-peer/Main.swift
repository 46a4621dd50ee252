import Foundation
import GRPCCore
import GRPCNIOTransportHTTP2
import GRPCProtobuf

// A peer of the rpc rows of tools/bench: the service of ../bench.proto in grpc-swift-2 with its NIO transport.
//
//     grpc-swift-peer serve SOCKET
//     grpc-swift-peer unary SOCKET CALLS SECONDS
//     grpc-swift-peer stream SOCKET EVENTS WATCHERS
typealias Bench = Drivebackup_Bench_V1_Bench

/// Before it counts, a run goes on for this long.
let warmUp = Duration.milliseconds(300)

struct Wrong: Error { var what: String }

struct Service: Bench.SimpleServiceProtocol {
    func get(request: Drivebackup_V1_GetJobRequest, context: ServerContext) async throws -> Drivebackup_V1_Job
    {
        .with {
            $0.id = request.jobID
            $0.type = .backup
            $0.drive = "vm1"
            $0.target = "/backup/vm1/2026-11-26T01-00-00.qcow2"
            $0.state = .running
            $0.progress = progress(123_456_789_012)
            $0.speed = 104_857_600
            $0.sync = .full
            $0.format = "qcow2"
            $0.pointInTime = 1_795_651_200_123_456_789
            $0.createdAt = 1_795_651_200_023_456_789
            $0.manualDismiss = true
            $0.lastSequence = 4711
            $0.staging = .with {
                $0.used = 1_048_576
                $0.limit = 10_737_418_240
            }
            $0.manifest = "/backup/vm1/2026-11-26T01-00-00.qcow2.manifest.json"
            $0.restarts = 1
            $0.onSourceError = .report
            $0.onTargetError = .enospc
        }
    }

    func watch(
        request: Drivebackup_V1_WatchJobRequest, response: RPCWriter<Drivebackup_V1_JobEvent>,
        context: ServerContext
    ) async throws {
        var sequence: UInt64 = 0
        while sequence < request.afterSequence {
            sequence += 1
            let event = Drivebackup_V1_JobEvent.with {
                $0.sequence = sequence
                $0.time = 1_795_651_200_123_456_789 + Int64(sequence)
                $0.jobID = request.jobID
                $0.progress = progress(Int64(sequence) << 20)
            }
            try await response.write(event)
        }
    }

    private func progress(_ current: Int64) -> Drivebackup_V1_Progress {
        .with {
            $0.current = current
            $0.total = 549_755_813_888
        }
    }
}

func serve(_ socket: String) async throws {
    let server = GRPCServer(
        transport: .http2NIOPosix(address: .unixDomainSocket(path: socket), transportSecurity: .plaintext),
        services: [Service()])
    try await server.serve()
}

func unary(_ client: Bench.Client<HTTP2ClientTransport.Posix>, calls: Int, seconds: Int) async throws {
    let start = ContinuousClock.now + warmUp
    let end = start + .seconds(seconds)
    let latencies = try await withThrowingTaskGroup(of: [Int64].self) { group in
        for _ in 0..<calls {
            group.addTask {
                var latencies: [Int64] = []
                let request = Drivebackup_V1_GetJobRequest.with { $0.jobID = "backup-vm1-0001" }
                var before = ContinuousClock.now
                while before < end {
                    let job = try await client.get(request)
                    guard job.lastSequence == 4711 else { throw Wrong(what: "answer") }
                    let now = ContinuousClock.now
                    if now >= start, now < end {
                        latencies.append((now - before).components.attoseconds / 1_000_000_000)
                    }
                    before = now
                }
                return latencies
            }
        }
        return try await group.reduce(into: []) { $0 += $1 }
    }.sorted()
    guard !latencies.isEmpty else { throw Wrong(what: "rate: no call ended in time") }
    func percentile(_ share: Double) -> Double {
        Double(latencies[min(latencies.count - 1, Int(Double(latencies.count) * share))]) / 1000
    }
    print(
        "{\"calls\": \(latencies.count), \"seconds\": \(seconds), \"p50_us\": \(percentile(0.5)), "
            + "\"p99_us\": \(percentile(0.99))}")
}

func stream(_ client: Bench.Client<HTTP2ClientTransport.Posix>, events: Int, watchers: Int) async throws {
    let request = Drivebackup_V1_WatchJobRequest.with {
        $0.jobID = "backup-vm1-0001"
        $0.afterSequence = UInt64(events)
    }
    let slow = Task {
        try await client.watch(request) { response in
            for try await _ in response.messages { try await Task.sleep(for: .milliseconds(10)) }
        }
    }
    let start = ContinuousClock.now
    let delivered = try await withThrowingTaskGroup(of: Int.self) { group in
        for _ in 1..<watchers {
            group.addTask {
                try await client.watch(request) { response in
                    var count = 0
                    for try await event in response.messages {
                        count += 1
                        guard event.sequence == UInt64(count) else { throw Wrong(what: "sequence") }
                    }
                    return count
                }
            }
        }
        return try await group.reduce(0, +)
    }
    let time = ContinuousClock.now - start
    slow.cancel()
    // What it throws is that it was cancelled.
    _ = await slow.result
    let seconds = Double(time.components.seconds) + Double(time.components.attoseconds) / 1e18
    print("{\"events\": \(delivered), \"seconds\": \(seconds)}")
}

func withClient(
    _ socket: String, _ body: @Sendable (Bench.Client<HTTP2ClientTransport.Posix>) async throws -> Void
) async throws {
    try await withGRPCClient(
        transport: .http2NIOPosix(target: .unixDomainSocket(path: socket), transportSecurity: .plaintext)
    ) { try await body(Bench.Client(wrapping: $0)) }
}

@main
struct Main {
    static func main() async throws {
        let words = Array(CommandLine.arguments.dropFirst())
        switch (words.first, words.count) {
        case ("serve", 2): try await serve(words[1])
        case ("unary", 4):
            try await withClient(words[1]) {
                try await unary($0, calls: Int(words[2]) ?? 1, seconds: Int(words[3]) ?? 1)
            }
        case ("stream", 4):
            try await withClient(words[1]) {
                try await stream($0, events: Int(words[2]) ?? 1, watchers: Int(words[3]) ?? 2)
            }
        default:
            print(
                "usage: grpc-swift-peer serve SOCKET | unary SOCKET CALLS SECONDS | stream SOCKET EVENTS WATCHERS"
            )
            exit(64)
        }
    }
}
