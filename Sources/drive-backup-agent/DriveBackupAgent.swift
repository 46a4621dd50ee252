internal import ArgumentParser
internal import BackupAgent
internal import Glibc
internal import Logging

/// The agent, or the process of one of its targets, which needs nothing of the agent's.
@main
enum Program {
    static func main() async {
        if TargetServer.isWanted { TargetServer.run() }
        await DriveBackupAgent.main()
    }
}

/// `drive-backup-agent`: options and wiring; what it does is in the BackupAgent library.
struct DriveBackupAgent: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "drive-backup-agent",
        abstract: "Serves disk images as drives and backs them up.",
        discussion: """
            It runs until SIGTERM or SIGINT, answers `drive-backup` and other clients on its addresses, and logs \
            to standard error.

            Examples:

              drive-backup-agent --drive id=vm1,file=/var/lib/vm/vm1.qcow2

              drive-backup-agent --listen unix:/tmp/agent.sock \\
                --state-directory /tmp/state --runtime-directory /tmp/run \\
                --allow-directory /backup \\
                --drive id=vm1,file=/var/lib/vm/vm1.raw,format=raw,read-only=on

              drive-backup-agent --drive id=vm1,file=/var/lib/vm/vm1.qcow2 \\
                --export drive=vm1,listen=unix:/run/vm/vm1.sock \\
                --staging /fast/staging,size=50G

              drive-backup-agent --drive id=vm1,file=/var/lib/vm/vm1.qcow2 \\
                --on-failed /usr/local/lib/backup-failed --history-age 30d
            """,
        version: "drive-backup-agent \(BackupAgentVersion.number)")

    @Option(
        help: ArgumentHelp(
            """
            Where to listen: unix:PATH or tcp://HOST:PORT (loopback only). May be repeated. \
            (default: unix:/run/drive-backup/agent.sock)
            """, valueName: "address"))
    var listen: [String] = []

    @Option(
        help: ArgumentHelp(
            "Where drives that clients add, and the history of jobs, are kept.", valueName: "dir"))
    var stateDirectory = "/var/lib/drive-backup"

    @Option(help: ArgumentHelp("Where what only matters until a reboot is kept.", valueName: "dir"))
    var runtimeDirectory = "/run/drive-backup"

    @Option(
        help: ArgumentHelp(
            """
            A directory below which clients may add drives and make targets. May be repeated. Without any, root's \
            own Unix connections may use all, others nothing.
            """, valueName: "dir"))
    var allowDirectory: [String] = []

    @Option(
        help: ArgumentHelp(
            """
            A drive: id=ID,file=PATH[,format=raw|qcow2][,read-only=on|off][,cache=writeback|none]. cache=none reads and \
            writes its files past the host's page cache. May be repeated. A comma in a value is doubled.
            """, valueName: "drive"))
    var drive: [String] = []

    @Option(
        help: ArgumentHelp(
            """
            A drive served over NBD: drive=ID,listen=unix:PATH|tcp://HOST:PORT[,name=NAME][,writable=on|off]. May be \
            repeated. The name is the drive's id by default; it is writable unless the drive is read-only.
            """, valueName: "export"))
    var export: [String] = []

    @Option(
        help: ArgumentHelp(
            """
            Where old content waits that guests overwrite during a backup: DIR[,size=SIZE], the size for each job, such \
            as 20G. (default: in the state directory, bounded by its free space)
            """, valueName: "staging"))
    var staging: String?

    @Option(
        help: ArgumentHelp(
            "What does the I/O: ring or threads. (default: ring where the system allows it)",
            valueName: "kind"))
    var engine: AgentConfiguration.Engine?

    @Option(
        help: ArgumentHelp(
            "How long ended jobs and their events are kept: days, or a number with m, h, d or w.",
            valueName: "age"))
    var historyAge = "90d"

    @Option(help: ArgumentHelp("How many ended jobs are kept at most.", valueName: "n"))
    var historyCount = 10_000

    @Option(
        help: ArgumentHelp(
            """
            A program that is run for each job that completes, without a shell, with the job as JSON on its standard input; it \
            has 30 seconds.
            """, valueName: "executable"))
    var onCompleted: String?

    @Option(help: ArgumentHelp("The same for each job that fails.", valueName: "executable"))
    var onFailed: String?

    @Option(help: ArgumentHelp("How much to log.", valueName: "level"))
    var logLevel = LogLevel.info

    func validate() throws {
        do {
            let drives = try drive.map { try DriveOption(parsing: $0) }
            let exports = try export.map { try ExportOption(parsing: $0) }
            _ = try staging.map { try StagingOption(parsing: $0) }
            _ = try HistoryOption.age(parsing: historyAge)
            guard historyCount > 0 else {
                throw ValidationError("The number of jobs in the history is not positive: \(historyCount).")
            }
            for path in [onCompleted, onFailed] where path?.isEmpty == true {
                throw ValidationError("The path of a hook is empty.")
            }
            for path in [stateDirectory, runtimeDirectory] + allowDirectory where path.isEmpty {
                throw ValidationError("A directory's path is empty.")
            }
            for address in listen { try AgentMain.checkAddress(address) }
            for (position, drive) in drives.enumerated()
            where drives[..<position].contains(where: { $0.id == drive.id }) {
                throw ValidationError("The drive \(drive.id) is given twice.")
            }
            for (position, export) in exports.enumerated()
            where exports[..<position].contains(where: { $0.name == export.name }) {
                throw ValidationError("The export \(export.name) is given twice.")
            }
        } catch let error as AgentError {
            throw ValidationError(error.message)
        }
    }

    func run() async throws {
        var configuration = AgentConfiguration(
            listen: listen.isEmpty ? ["unix:/run/drive-backup/agent.sock"] : listen,
            stateDirectory: stateDirectory, runtimeDirectory: runtimeDirectory,
            version: BackupAgentVersion.number)
        configuration.allowedDirectories = allowDirectory
        configuration.drives = try drive.map { try DriveOption(parsing: $0) }
        configuration.exports = try export.map { try ExportOption(parsing: $0) }
        configuration.staging = try staging.map { try StagingOption(parsing: $0) }
        configuration.engine = engine
        configuration.history = HistoryLimits(
            age: try HistoryOption.age(parsing: historyAge), count: historyCount)
        configuration.hooks.onCompleted = onCompleted
        configuration.hooks.onFailed = onFailed
        guard await AgentMain.run(configuration, level: logLevel.level) else { throw ExitCode(1) }
    }
}

extension AgentConfiguration.Engine: ExpressibleByArgument {}

/// The words for how much is logged, most first.
enum LogLevel: String, CaseIterable, ExpressibleByArgument {
    case trace, debug, info, notice, warning, error, critical

    var level: Logger.Level { Logger.Level(rawValue: rawValue) ?? .info }
}
