internal import DriveBackupClient
internal import Logging

/// The methods of ../bench.proto.
enum Bench {
    static let get = RPCMethod<GetJobRequest, Job>("drivebackup.bench.v1.Bench/Get", isServerStreaming: false)
    static let watch = RPCMethod<WatchJobRequest, JobEvent>(
        "drivebackup.bench.v1.Bench/Watch", isServerStreaming: true)

    /// The job that all peers answer with.
    static func job(_ id: String) -> Job {
        var job = Job(
            id: id, type: .backup, drive: "vm1", target: "/backup/vm1/2026-11-26T01-00-00.qcow2",
            state: .running,
            progress: Progress(current: 123_456_789_012, total: 549_755_813_888), speed: 104_857_600)
        job.sync = .full
        job.format = "qcow2"
        job.pointInTime = 1_795_651_200_123_456_789
        job.createdAt = 1_795_651_200_023_456_789
        job.manualDismiss = true
        job.lastSequence = 4711
        job.staging = StagingUsage(used: 1_048_576, limit: 10_737_418_240)
        job.manifest = "/backup/vm1/2026-11-26T01-00-00.qcow2.manifest.json"
        job.restarts = 1
        job.onSourceError = .report
        job.onTargetError = .enospc
        return job
    }

    /// The event that all peers send, with its number.
    static func event(_ sequence: UInt64, of id: String) -> JobEvent {
        JobEvent(
            sequence: sequence, time: 1_795_651_200_123_456_789 + Int64(sequence), jobID: id,
            event: .progress(Progress(current: Int64(sequence) << 20, total: 549_755_813_888)))
    }
}

/// Answers until the process is killed.
func serve(_ socket: String) async throws {
    var router = RPCRouter()
    router.unary(Bench.get) { request, _ in Bench.job(request.jobID) }
    router.stream(Bench.watch) { (request, _, writer) async throws(RPCStatus) in
        // In pages, as the agent does.
        var sequence: UInt64 = 0
        while sequence < request.afterSequence {
            let end = min(sequence + 256, request.afterSequence)
            try await writer.write(
                contentsOf: (sequence + 1...end).map { Bench.event($0, of: request.jobID) })
            sequence = end
        }
    }
    let server = RPCServer(
        listen: [.unix(path: socket)], router: router, logger: Logger(label: "drive-backup-rpc"))
    try await server.bind()
    await server.run()
}
