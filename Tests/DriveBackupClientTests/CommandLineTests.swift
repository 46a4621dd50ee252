internal import ArgumentParser
import DriveBackupClient
import Testing

@testable import DriveBackupCLI

@Suite("The command line")
struct CommandLineTests {
    private func parse<Command: ToolCommand>(_ line: String, as type: Command.Type) throws -> Command {
        let parsed = try DriveBackupCommand.parseAsRoot(line.split(separator: " ").map(String.init))
        return try #require(parsed as? Command)
    }

    @Test("every option of start reaches the request")
    func start() throws {
        let line = """
            start vm1 out/x.raw --sync top --format raw --mode existing --overwrite --speed 1.5M --job-id j \
            --request-key k --detach --manual-finalize --manual-dismiss
            """
        let request = try parse(line, as: StartCommand.self).request(in: .test())
        var expected = BackupRequest()
        expected.drive = "vm1"
        expected.target = "/pool/dir/out/x.raw"
        expected.sync = .top
        expected.format = "raw"
        expected.mode = .existing
        expected.overwrite = true
        expected.speed = 1_572_864
        expected.jobID = "j"
        expected.requestKey = "k"
        expected.detach = true
        expected.manualFinalize = true
        expected.manualDismiss = true
        #expect(request == expected)
    }

    @Test("what is saved before a guest overwrites it, and what of the target is kept, reaches the request")
    func savingOptions() throws {
        let line = """
            start vm1 /x --sync none --format qcow2 --on-cbw-error break-guest-write --cbw-timeout 2.5 \
            --staging-full stall --keep-target
            """
        let request = try parse(line, as: StartCommand.self).request(in: .test())
        var expected = BackupRequest()
        expected.drive = "vm1"
        expected.target = "/x"
        expected.sync = .none
        expected.mode = .absolutePaths
        expected.format = "qcow2"
        expected.onCbwError = .breakGuestWrite
        expected.cbwTimeoutNs = 2_500_000_000
        expected.stagingFull = .stall
        expected.keepTarget = true
        #expect(request == expected)
        let forever = try parse("start vm1 /x --cbw-timeout 0", as: StartCommand.self).request(in: .test())
        #expect(forever.cbwTimeoutNs == -1)
    }

    @Test(
        "a group has a backup for each drive, with the options of all, and what is told once is the group's")
    func group() throws {
        let line = "start-group a=out/a b=/b=c --sync top --speed 1K --detach --request-key k --overwrite"
        let request = try parse(line, as: StartGroupCommand.self).request(in: .test())
        #expect(request.backups.map(\.drive) == ["a", "b"])
        #expect(request.backups.map(\.target) == ["/pool/dir/out/a", "/b=c"])
        #expect(request.backups.allSatisfy { $0.sync == .top && $0.speed == 1024 && $0.overwrite })
        #expect(request.backups.allSatisfy { !$0.detach && $0.requestKey.isEmpty && $0.jobID.isEmpty })
        #expect(request.detach && request.requestKey == "k" && request.completion == .unspecified)
        let grouped = try parse("start-group a=/a --completion grouped", as: StartGroupCommand.self)
        #expect(try grouped.request(in: .test()).completion == .grouped)
    }

    @Test("start without options copies all into a new image as fast as it can")
    func plainStart() throws {
        let request = try parse("start vm1 /x", as: StartCommand.self).request(in: .test())
        var expected = BackupRequest()
        expected.drive = "vm1"
        expected.target = "/x"
        expected.sync = .full
        expected.mode = .absolutePaths
        #expect(request == expected)
    }

    @Test(
        "the agent's address and --json are taken before and after the command",
        arguments: [
            "--agent unix:/a --json job list", "job --agent unix:/a --json list",
            "job list --agent unix:/a --json",
            "--json job list --agent=unix:/a", "--agent unix:/a job list --all --json",
        ])
    func globals(line: String) throws {
        let command = try parse(line, as: JobListCommand.self)
        #expect(command.global.agent == "unix:/a")
        #expect(command.global.json)
    }

    @Test("the agent is the option's, else the environment's, else the local one")
    func defaults() {
        func agent(_ option: String?, _ variable: String?) -> String {
            var options = GlobalOptions()
            options.agent = option
            options.json = false
            let environment = variable.map { ["DRIVE_BACKUP_AGENT": $0] } ?? [:]
            return Session(options, surroundings: .test(environment), console: Capture().console).agent
        }
        #expect(agent("unix:/a", "unix:/b") == "unix:/a")
        #expect(agent(nil, "unix:/b") == "unix:/b")
        #expect(agent(nil, "") == "unix:/run/drive-backup/agent.sock")
        #expect(agent(nil, nil) == "unix:/run/drive-backup/agent.sock")
    }

    @Test(
        "what is not understood is a usage error in one line, and asks nothing of any agent",
        arguments: [
            "", "job", "drive", "nonsense", "start", "start vm1", "start vm1 x y",
            "start vm1 x --sync incremental", "start vm1 x --mode new", "start vm1 x --format vmdk",
            "start vm1 x --speed -1", "start vm1 x --speed 99999999999999T", "start vm1 x --speed",
            "start vm1 x --compress",
            "start vm1 x --on-source-error skip", "start vm1 x --on-target-error", "start vm1 nbd://host/x",
            "start vm1 x --cbw-timeout -1", "start vm1 x --cbw-timeout 0.0000000001",
            "start vm1 x --cbw-timeout 1s", "start vm1 x --cbw-timeout .5",
            "start vm1 x --on-cbw-error ignore", "start vm1 x --staging-full wait", "start-group",
            "start-group a",
            "start-group a=", "start-group =b", "start-group a=b --completion all",
            "start-group a=b --job-id j",
            "export", "export add", "export add vm1", "export add vm1 unix:/x y", "export remove",
            "export add --snapshot-of j", "export add --snapshot-of j vm1 unix:/x",
            "verify", "restore x", "job set-speed vm1 -5", "job set-speed vm1 fast", "job cancel",
            "job watch vm1 --after -1", "events --after x", "--agent foo job list",
            "--agent tcp://x job list",
            "drive add vm1", "agent", "agent reboot",
        ])
    func usage(line: String) async {
        let capture = Capture()
        let status = await CommandLineTool.run(
            line.split(separator: " ").map(String.init), surroundings: .test(), console: capture.console)
        #expect(status == .usage)
        #expect(capture.output.isEmpty)
        #expect(capture.errorLines.count == 1)
        #expect(capture.error.hasPrefix("drive-backup: "))
    }

    @Test(
        "help and version are no errors",
        arguments: ["--help", "help", "help start", "start --help", "job -h", "help job cancel", "--version"])
    func help(line: String) async {
        let capture = Capture()
        let status = await CommandLineTool.run(
            line.split(separator: " ").map(String.init), surroundings: .test(), console: capture.console)
        #expect(status == .done)
        #expect(capture.error.isEmpty)
        #expect(!capture.output.isEmpty)
    }

    @Test("the first help fits a screen of 24 lines and names only what exists")
    func firstHelp() async {
        let capture = Capture()
        _ = await CommandLineTool.run(["--help"], surroundings: .test(), console: capture.console)
        #expect(capture.output.split(separator: "\n", omittingEmptySubsequences: false).count <= 25)
        for word in ["compress", "rebase"] {
            #expect(!capture.output.contains(word))
        }
    }

    @Test("an agent that is not there is said in one line, with status 69")
    func nobody() async {
        let capture = Capture()
        let status = await CommandLineTool.run(
            ["--agent", "unix:/nonexistent/s", "job", "list"], surroundings: .test(), console: capture.console
        )
        #expect(status == .unreachable)
        #expect(capture.errorLines.count == 1)
        #expect(capture.error.contains("/nonexistent/s"))
    }

    @Test(
        "relative paths are meant from the current directory",
        arguments: [
            ("x", "/pool/dir/x"), ("./x", "/pool/dir/x"), (".//./x", "/pool/dir/x"),
            ("../x", "/pool/dir/../x"),
            ("/x", "/x"), ("a:b", "/pool/dir/a:b"), ("a/b://c", "/pool/dir/a/b://c"),
        ])
    func paths(path: String, absolute: String) throws {
        #expect(try Surroundings.test().absolute(path) == absolute)
    }

    @Test(
        "block characters are used where the locale says UTF-8",
        arguments: [
            (["LANG": "en_US.UTF-8"], true), (["LANG": "C"], false), ([:], false),
            (["LC_ALL": "C.utf8"], true),
            (["LC_ALL": "C", "LANG": "de_DE.UTF-8"], false),
            (["LC_ALL": "", "LC_CTYPE": "ja_JP.UTF-8"], true),
            (["LANG": "de_DE.ISO-8859-1"], false),
        ] as [([String: String], Bool)])
    func locale(environment: [String: String], isUTF8: Bool) {
        #expect(Surroundings.test(environment).isUTF8 == isUTF8)
    }
}

@Suite("The words of verify and restore")
struct ReadingBackCommandTests {
    @Test("a destination with a slash is a file, another a drive")
    func destination() throws {
        func request(_ words: String) throws -> RestoreRequest {
            let command = try DriveBackupCommand.parseAsRoot(words.split(separator: " ").map(String.init))
            return try #require(command as? RestoreCommand).request(in: .test())
        }
        let file = try request(
            "restore /b ./new.raw --format raw --overwrite --speed 1M --job-id r --request-key k --detach")
        #expect(
            file.target == "/b" && file.file.hasSuffix("/new.raw") && file.file.hasPrefix("/")
                && file.drive.isEmpty)
        #expect(file.format == "raw" && file.overwrite && file.speed == 1 << 20 && file.detach)
        #expect(file.jobID == "r" && file.requestKey == "k")
        let drive = try request("restore /b vm1")
        #expect(drive.drive == "vm1" && drive.file.isEmpty && drive.format.isEmpty && !drive.overwrite)
    }
}
