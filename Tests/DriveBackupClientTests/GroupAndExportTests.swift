import DriveBackupClient
import Foundation
import Synchronization
import Testing

@testable import DriveBackupCLI

@Suite("Groups and exports against an agent")
struct GroupAndExportTests {
    private static func group(_ events: [JobEvent], then status: RPCStatus = .ok) -> RPCRouter {
        .with { router in
            router.stream(BackupsMethods.startGroup) { _, _, writer throws(RPCStatus) in
                for event in events { try await writer.write(event) }
                if status.code != .ok { throw status }
            }
        }
    }

    private static let bothStarted = [JobEvent.started(1, job: "a"), .started(2, job: "b")]

    @Test(
        "start-group exits with the worst result of its jobs, whichever job's it is",
        arguments: [
            ([.completed(Completed(result: .completed)), .completed(Completed(result: .completed))], 0),
            (
                [
                    .completed(Completed(result: .completed)),
                    .completed(Completed(result: .completedWithErrors, missingBytes: 5)),
                ], 3
            ),
            (
                [
                    .completed(Completed(result: .completedWithErrors, missingBytes: 5)),
                    .cancelled(Cancelled()),
                ],
                4
            ),
            ([.failed(Failed(error: JobError(message: "the disk is gone"))), .cancelled(Cancelled())], 1),
        ] as [([JobEvent.Event], Int32)])
    func results(ends: [JobEvent.Event], status: Int32) async throws {
        for order in [[0, 1], [1, 0]] {
            let events =
                Self.bothStarted + [.of(3, ends[order[0]], job: "a"), .of(4, ends[order[1]], job: "b")]
            let run = try await ScriptedAgent.run("start-group a=/x b=/y", Self.group(events))
            #expect(run.status.rawValue == status)
            #expect(run.capture.outputLines == ["a", "b"])
            let json = try await ScriptedAgent.run("--json start-group a=/x b=/y", Self.group(events))
            #expect(json.status.rawValue == status)
            #expect(json.capture.outputLines.count == 4)
            for line in json.capture.outputLines {
                #expect(try JSONSerialization.jsonObject(with: Data(line.utf8)) is [String: Any])
            }
            if status == 1 {
                #expect(json.capture.errorLines.count == 1)
                #expect(json.capture.error.contains("the disk is gone"))
            } else {
                #expect(json.capture.error.isEmpty)
            }
        }
    }

    @Test("a refused group prints nothing but one line of why")
    func refused() async throws {
        let status = RPCStatus(.alreadyExists, "/x exists", reason: "TARGET_EXISTS")
        let run = try await ScriptedAgent.run("start-group a=/x b=/y", Self.group([], then: status))
        #expect(run.status == .failed && run.capture.output.isEmpty)
        #expect(run.capture.error == "drive-backup: couldn't start the backups of a, b: /x exists\n")
    }

    @Test("a detached group ends when all have started, and not before")
    func detached() async throws {
        let run = try await ScriptedAgent.run("start-group a=/x b=/y --detach", Self.group(Self.bothStarted))
        #expect(run.status == .done && run.capture.outputLines == ["a", "b"])
    }

    @Test("a group whose connection is lost is followed job by job, and no event is told twice or lost")
    func reconnects() async throws {
        let asked = Mutex<[String: UInt64]>([:])
        let events = Self.bothStarted + [.of(3, .progress(Progress(current: 1, total: 2)), job: "a")]
        var router = Self.group(events, then: RPCStatus(.unavailable, "The connection was lost."))
        router.stream(JobsMethods.watch) { request, _, writer throws(RPCStatus) in
            asked.withLock { $0[request.jobID] = request.afterSequence }
            let end = JobEvent.Event.completed(Completed(result: .completed))
            try await writer.write(.of(request.jobID == "a" ? 4 : 5, end, job: request.jobID))
        }
        let run = try await ScriptedAgent.run("start-group a=/x b=/y --json", router)
        #expect(run.status == .done)
        #expect(asked.withLock { $0 } == ["a": 3, "b": 2])
        let sequences = try run.capture.outputLines.map { line in
            try #require(JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])["sequence"]
                as? Int
        }
        #expect(Set(sequences) == [1, 2, 3, 4, 5] && sequences.count == 5)
    }

    @Test("a report of a group that breaks off without an end is no success, and names the job")
    func brokenOff() async throws {
        let events = Self.bothStarted + [.of(3, .completed(Completed(result: .completed)), job: "a")]
        let run = try await ScriptedAgent.run("start-group a=/x b=/y", Self.group(events))
        #expect(run.status == .failed && run.capture.error.contains("drive-backup job show b"))
    }

    @Test("an export is added with what was said, and its socket is the caller's")
    func addExport() async throws {
        let heard = Mutex<[AddExportRequest]>([])
        let router = RPCRouter.with { router in
            router.unary(ExportsMethods.add) { request, _ throws(RPCStatus) in
                heard.withLock { $0.append(request) }
                return Export(
                    name: request.name.isEmpty ? request.drive : request.name, drive: request.drive,
                    address: request.address, readOnly: request.readOnly, snapshotOf: request.snapshotOf)
            }
        }
        for line in [
            "export add vm1 unix:x.sock", "export add vm1 unix:///a/x --name disk --read-only",
            "export add --snapshot-of j tcp://127.0.0.1:0 --name then", "export add --snapshot-of j unix:./s",
        ] {
            let run = try await ScriptedAgent.run(line, router)
            #expect(run.status == .done && run.capture.outputLines.count == 1)
        }
        #expect(
            heard.withLock { $0 } == [
                AddExportRequest(drive: "vm1", address: "unix:/pool/dir/x.sock"),
                AddExportRequest(drive: "vm1", address: "unix:/a/x", name: "disk", readOnly: true),
                AddExportRequest(address: "tcp://127.0.0.1:0", name: "then", snapshotOf: "j"),
                AddExportRequest(address: "unix:/pool/dir/s", snapshotOf: "j"),
            ])
    }

    @Test("exports are listed with what they serve, and why not")
    func listExports() async throws {
        let exports = [
            Export(name: "vm1", drive: "vm1", address: "unix:/a", clients: 3),
            Export(name: "then", drive: "vm1", address: "unix:/b", readOnly: true, snapshotOf: "j"),
            Export(name: "old", drive: "gone", address: "unix:/c", problem: "There is no drive 'gone'"),
        ]
        let router = RPCRouter.with { router in
            router.unary(ExportsMethods.list) { _, _ throws(RPCStatus) in
                ListExportsResponse(exports: exports)
            }
            router.unary(ExportsMethods.remove) { request, _ throws(RPCStatus) in
                throw RPCStatus(.notFound, "There is no export '\(request.name)'", reason: "EXPORT_NOT_FOUND")
            }
        }
        let people = try await ScriptedAgent.run("export list", router)
        #expect(people.capture.outputLines.count == 5)
        for words in ["vm1 at the start of j", "not served", "There is no drive 'gone'", "read-write"] {
            #expect(people.capture.output.contains(words))
        }
        #expect(try await ScriptedAgent.run("--json export list", router).capture.outputLines.count == 3)
        let removed = try await ScriptedAgent.run("export remove x", router)
        #expect(removed.status == .failed && removed.capture.errorLines.count == 1)
    }

    @Test("a job that drains is ending, not given up, and staging is shown")
    func draining() {
        var job = Job(id: "vm1", drive: "vm1", target: "/x", state: .aborting, sync: .none)
        #expect(JobText.line(job) == "vm1 is ending")
        job.sync = .full
        #expect(JobText.line(job) == "vm1 is being given up")
        job.staging = StagingUsage(used: 3 << 20, limit: 2 << 30)
        #expect(
            JobText.story(job, prefix: "drive-backup").contains("  staging  3.00 MiB of at most 2.00 GiB"))
    }
}
