import DriveBackupClient
import Foundation
import Synchronization
import Testing

@testable import DriveBackupCLI

@Suite("Commands against an agent")
struct CommandTests {
    private static func ended(_ end: JobEvent.Event) -> [JobEvent] {
        [.started(1), .progress(2, 5, 10), .of(3, end)]
    }

    @Test(
        "start exits with the job's result",
        arguments: [
            (JobEvent.Event.completed(Completed(result: .completed)), 0),
            (.completed(Completed(result: .completedWithErrors, missingBytes: 5)), 3),
            (
                .failed(
                    Failed(error: JobError(code: .aborted, reason: "IO_ERROR", message: "the disk is gone"))),
                1
            ),
            (.cancelled(Cancelled()), 4),
        ] as [(JobEvent.Event, Int32)])
    func results(end: JobEvent.Event, status: Int32) async throws {
        let run = try await ScriptedAgent.run("start vm1 /x", .starting(Self.ended(end)))
        #expect(run.status.rawValue == status)
        #expect(run.capture.output == "vm1\n")
        let json = try await ScriptedAgent.run("--json start vm1 /x", .starting(Self.ended(end)))
        #expect(json.status.rawValue == status)
        #expect(json.capture.outputLines.count == 3)
        for line in json.capture.outputLines {
            #expect(try JSONSerialization.jsonObject(with: Data(line.utf8)) is [String: Any])
        }
        if status == 1 {
            #expect(json.capture.error == "drive-backup: backup of vm1 to /x failed: the disk is gone\n")
            #expect(
                run.capture.errorLines.last == "drive-backup: backup of vm1 to /x failed: the disk is gone")
        } else {
            #expect(json.capture.error.isEmpty)
        }
    }

    @Test(
        "a refused start prints nothing but one line of why",
        arguments: [
            (RPCStatus(.alreadyExists, "/x exists", reason: "TARGET_EXISTS"), 1),
            (RPCStatus(.invalidArgument, "drive: is empty", reason: "FIELD_INVALID"), 64),
            (RPCStatus(.permissionDenied, "Couldn't make /x: it is outside\nthe allowed directories"), 77),
            (RPCStatus(.unavailable, "The agent is stopping.", reason: "AGENT_STOPPING"), 69),
        ] as [(RPCStatus, Int32)])
    func refusals(status: RPCStatus, exit: Int32) async throws {
        for line in ["start vm1 /x", "start vm1 /x --json", "start vm1 /x --detach"] {
            let run = try await ScriptedAgent.run(line, .starting([], then: status))
            #expect(run.status.rawValue == exit)
            #expect(run.capture.output.isEmpty)
            #expect(run.capture.errorLines.count == 1)
            #expect(run.capture.error.hasPrefix("drive-backup: couldn't "))
        }
    }

    @Test("a detached start ends with the point in time, under the id that the agent gave")
    func detach() async throws {
        let run = try await ScriptedAgent.run("start vm1 /x --detach", .starting([.started(1, job: "other")]))
        #expect(run.status == .done)
        #expect(run.capture.output == "other\n")
    }

    @Test("a report that breaks off without an end is no success")
    func brokenOff() async throws {
        let run = try await ScriptedAgent.run("start vm1 /x", .starting([.started(1)]))
        #expect(run.status == .failed)
        #expect(run.capture.error.contains("drive-backup job show vm1"))
    }

    @Test("a start whose connection is lost goes on where it was, and no event is told twice or lost")
    func reconnects() async throws {
        let asked = Mutex<[UInt64]>([])
        let router = RPCRouter.with { router in
            router.stream(BackupsMethods.start) { _, _, writer throws(RPCStatus) in
                try await writer.write(.started(7))
                try await writer.write(.progress(8, 1, 10))
                throw RPCStatus(.unavailable, "The connection was lost.")
            }
            router.stream(JobsMethods.watch) { request, _, writer throws(RPCStatus) in
                let attempt = asked.withLock { asked in
                    asked.append(request.afterSequence)
                    return asked.count
                }
                // What has been told is repeated; it must not be shown again.
                try await writer.write(.progress(8, 1, 10))
                try await writer.write(.progress(UInt64(8 + attempt), Int64(attempt), 10))
                if attempt < 3 { throw RPCStatus(.unavailable, "The connection was lost again.") }
                try await writer.write(.completed(12, 10))
            }
        }
        let run = try await ScriptedAgent.run("start vm1 /x --json", router)
        #expect(run.status == .done)
        #expect(asked.withLock { $0 } == [8, 9, 10])
        let sequences = try run.capture.outputLines.map { line in
            try #require(JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])["sequence"]
                as? Int
        }
        #expect(sequences == [7, 8, 9, 10, 11, 12])
    }

    @Test("job watch of an ended job tells its end, and exits with its result")
    func watchEnded() async throws {
        let router = RPCRouter.with { router in
            router.unary(JobsMethods.get) { request, _ throws(RPCStatus) in
                var job = Job(id: request.jobID)
                job.state = .concluded
                job.result = .cancelled
                job.drive = "vm1"
                job.target = "/x"
                return job
            }
            router.stream(JobsMethods.watch) { request, _, writer throws(RPCStatus) in
                for event in Self.ended(.cancelled(Cancelled())) where event.sequence > request.afterSequence
                {
                    try await writer.write(event)
                }
            }
        }
        for (line, count) in [
            ("job watch vm1", 1), ("job watch vm1 --json", 3), ("--json job watch vm1 --after 2", 1),
        ] {
            let run = try await ScriptedAgent.run(line, router)
            #expect(run.status == .cancelled)
            #expect(run.capture.outputLines.count == count)
        }
    }

    @Test("lists print one object a line, and say for people that they are empty")
    func lists() async throws {
        let jobs = Mutex<[Job]>([])
        let router = RPCRouter.with { router in
            router.unary(JobsMethods.list) { _, _ throws(RPCStatus) in
                ListJobsResponse(jobs: jobs.withLock { $0 })
            }
        }
        let empty = try await ScriptedAgent.run("job list", router)
        #expect(empty.capture.output.isEmpty)
        #expect(empty.capture.error.hasPrefix("no jobs"))
        #expect(try await ScriptedAgent.run("job list --json", router).capture.output.isEmpty)
        jobs.withLock { $0 = [Job(id: "a", drive: "a\u{1B}[2J"), Job(id: "b", state: .paused)] }
        let full = try await ScriptedAgent.run("job list", router)
        #expect(full.capture.outputLines.count == 3)
        #expect(!full.capture.output.contains("\u{1B}"))
        let json = try await ScriptedAgent.run("job list --json", router).capture.outputLines
        #expect(json.count == 2)
        #expect(json.last?.contains("\"state\":\"paused\"") == true)
    }

    @Test("all ended jobs are asked for, page by page, and told with what became of them")
    func history() async throws {
        let asked = Mutex<[UInt64]>([])
        let router = RPCRouter.with { router in
            router.unary(JobsMethods.list) { request, _ throws(RPCStatus) in
                asked.withLock { $0.append(request.afterSequence) }
                guard request.all else { return ListJobsResponse() }
                let first = request.afterSequence + 1
                return ListJobsResponse(
                    jobs: (first..<first + 2).map { number in
                        Job(
                            id: "job\(number)", target: "/t\(number)", state: .concluded, result: .failed,
                            progress: Progress(current: 10 << 20, total: 20 << 20),
                            pointInTime: 1_000_000_000,
                            endedAt: 6_000_000_000, lastSequence: number, errorCount: number)
                    }, more: request.afterSequence < 4)
            }
        }
        let lines = try await ScriptedAgent.run("job list --all", router).capture.outputLines
        #expect(asked.withLock { $0 } == [0, 2, 4])
        #expect(lines.count == 7)
        #expect(lines.first?.hasPrefix("JOB   RESULT  DURATION") == true)
        let words = try #require(lines.last).split(separator: " ").map(String.init)
        #expect(words.prefix(9) == ["job6", "failed", "5.0", "s", "10.0", "MiB", "2.00", "MiB/s", "6"])
        #expect(words.last == "/t6")
    }

    @Test("the story of a job has all that is known of it")
    func story() {
        var job = Job(id: "vm1", drive: "vm1", target: "/t", state: .concluded, result: .completedWithErrors)
        job.group = "night"
        job.grouped = true
        job.restarts = 2
        job.manifest = "/t.manifest"
        job.targetBusy = "the process 77 still has it open"
        job.missingBytes = 8192
        job.missing = [Range(offset: 65536, length: 4096)]
        job.errorCount = 9
        job.errors = [
            IOErrorEvent(
                side: .source, operation: .verify, message: "It\u{7} differs", action: .ignore, count: 3)
        ]
        job.pauseError = IOErrorEvent(
            side: .target, operation: .write, offset: 1024, length: 512, errno: 28, message: "No space",
            action: .stop)
        job.onSourceError = .ignore
        job.manualDismiss = true
        let text = JobText.story(job, prefix: "drive-backup").joined(separator: "\n")
        for part in [
            "state    incomplete", "group    night, all complete or none",
            "restarts the agent was restarted 2 times",
            "manifest /t.manifest", "busy     the process 77", "missing  8.00 KiB",
            "4096 bytes at 65536",
            "and more (--json lists the first 256)", "failures 9, the last of them:",
            "source verify, ignore: It? differs (3 in all); left out",
            "cause    target write, 512 bytes at 1024, errno 28, stop: No space; paused",
            "policies ignore for errors of the drive, report for those of the target", "waits    for dismiss",
            "next     drive-backup job dismiss vm1",
        ] {
            #expect(text.components(separatedBy: part).count == 2, "\(part) is not once in:\n\(text)")
        }
        let titles = text.split(separator: "\n").dropFirst().compactMap { line in
            line.dropFirst(2).first == " " ? nil : line.split(separator: " ").first
        }
        #expect(titles.count == Set(titles).count, "a title comes twice in:\n\(text)")
    }

    @Test("each verb is sent with its arguments, and prints the job")
    func verbs() async throws {
        let heard = Mutex<[String]>([])
        let router = RPCRouter.with { router in
            router.unary(JobsMethods.pause) { request, _ throws(RPCStatus) in
                heard.withLock { $0.append("pause \(request.jobID)") }
                return Job(id: request.jobID, state: .paused)
            }
            router.unary(JobsMethods.resume) { request, _ throws(RPCStatus) in
                heard.withLock { $0.append("resume \(request.jobID)") }
                return Job(id: request.jobID, state: .running)
            }
            router.unary(JobsMethods.cancel) { request, _ throws(RPCStatus) in
                heard.withLock { $0.append("cancel \(request.jobID) \(request.force)") }
                return Job(id: request.jobID, state: .aborting)
            }
            router.unary(JobsMethods.setSpeed) { request, _ throws(RPCStatus) in
                heard.withLock { $0.append("speed \(request.jobID) \(request.speed)") }
                return Job(id: request.jobID, state: .running)
            }
            router.unary(JobsMethods.finalize) { request, _ throws(RPCStatus) in
                throw RPCStatus(
                    .failedPrecondition, "The job \(request.jobID) is running", reason: "JOB_STATE")
            }
            router.unary(JobsMethods.dismiss) { request, _ throws(RPCStatus) in
                throw RPCStatus(.notFound, "There is no job '\(request.jobID)'", reason: "JOB_NOT_FOUND")
            }
        }
        for line in [
            "job pause j", "job resume j", "job cancel j --force", "job cancel j", "job set-speed j 1K",
        ] {
            let run = try await ScriptedAgent.run(line, router)
            #expect(run.status == .done)
            #expect(run.capture.outputLines.count == 1)
            let json = try await ScriptedAgent.run("--json " + line, router)
            #expect(json.capture.output.hasPrefix("{\"id\":\"j\""))
        }
        let expected = ["pause j", "resume j", "cancel j true", "cancel j false", "speed j 1024"]
        #expect(heard.withLock { $0 } == expected.flatMap { [$0, $0] })
        for line in ["job finalize j", "job dismiss j"] {
            let run = try await ScriptedAgent.run(line, router)
            #expect(run.status == .failed)
            #expect(run.capture.errorLines.count == 1)
        }
    }

    @Test("a drive is added by its absolute path")
    func addDrive() async throws {
        let router = RPCRouter.with { router in
            router.unary(DrivesMethods.add) { request, _ throws(RPCStatus) in
                Drive(id: request.id, file: request.file, format: request.format, readOnly: request.readOnly)
            }
        }
        let run = try await ScriptedAgent.run("--json drive add d ./x.img --format raw --read-only", router)
        #expect(run.capture.output.contains("\"file\":\"/pool/dir/x.img\""))
        #expect(run.capture.output.contains("\"read_only\":true"))
    }

    @Test(
        "an agent too old for a cache mode keeps no drive that is used otherwise", arguments: [false, true])
    func olderAgent(knows: Bool) async throws {
        let removed = Mutex<[String]>([])
        let router = RPCRouter.with { router in
            router.unary(DrivesMethods.add) { request, _ throws(RPCStatus) in
                Drive(id: request.id, file: request.file, cache: knows ? request.cache : "")
            }
            router.unary(DrivesMethods.remove) { request, _ throws(RPCStatus) in
                removed.withLock { $0.append(request.id) }
                return RemoveDriveResponse()
            }
        }
        let run = try await ScriptedAgent.run("drive add d ./x.img --cache none", router)
        #expect(run.status == (knows ? .done : .failed))
        #expect(run.capture.errorLines.count == (knows ? 0 : 1))
        #expect(removed.withLock { $0 } == (knows ? [] : ["d"]))
    }

    @Test("events are shown until there are no more, and ping tells the time")
    func eventsAndPing() async throws {
        let router = RPCRouter.with { router in
            router.stream(AgentMethods.watchEvents) { request, _, writer throws(RPCStatus) in
                guard request.noFollow else { throw RPCStatus(.internal, "not asked to end") }
                for event in Self.ended(.cancelled(Cancelled())) where event.sequence > request.afterSequence
                {
                    try await writer.write(event)
                }
            }
            router.unary(AgentMethods.getInfo) { _, _ throws(RPCStatus) in AgentInfo(version: "1") }
        }
        #expect(try await ScriptedAgent.run("events --after 1", router).capture.outputLines.count == 2)
        #expect(try await ScriptedAgent.run("events --json", router).capture.outputLines.count == 3)
        let ping = try await ScriptedAgent.run("--json agent ping", router).capture.output
        #expect(ping.hasPrefix("{\"round_trip_ns\":") && ping.hasSuffix("}\n"))
        #expect(try await ScriptedAgent.run("agent info", router).capture.output.contains("version  1"))
    }
}
