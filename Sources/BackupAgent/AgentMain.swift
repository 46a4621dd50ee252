internal import DriveBackupRPC
internal import Glibc
package import Logging
internal import ServiceLifecycle
internal import UnixSignals

/// The version of this software.
package enum BackupAgentVersion {
    package static let number = "0.1.0"
}

/// The agent as a process.
package enum AgentMain {
    /// How long stopping may take before the process ends all the same, whatever hangs.
    static let patience = Duration.milliseconds(4700)

    /// Throws a sentence unless `address` is one to listen on.
    package static func checkAddress(_ address: String) throws(AgentError) {
        do throws(RPCStatus) { _ = try RPCAddress(parsing: address) } catch { throw AgentError(error) }
    }

    /// Runs the agent until a signal stops it. False, after one line on standard error, when it cannot start.
    package static func run(_ configuration: AgentConfiguration, level: Logger.Level) async -> Bool {
        signal(SIGPIPE, SIG_IGN)
        // A file that would grow beyond the process's limit (LimitFSIZE) is an error like any other, not the end.
        signal(SIGXFSZ, SIG_IGN)
        // Ignored, as whoever started us may have it, the children would be gone before they are waited for.
        signal(SIGCHLD, SIG_DFL)
        raiseFileLimit()
        let logger = Logger(label: "drive-backup-agent") { _ in AgentLog(level: level) }
        var configuration = configuration
        configuration.makePathsAbsolute()
        let agent: Agent
        do throws(AgentError) {
            agent = try await Agent(configuration, logger: logger)
        } catch {
            let line = Array("drive-backup-agent: \(error.message)\n".utf8)
            _ = write(STDERR_FILENO, line, line.count)
            return false
        }
        let watched = WatchedService(agent: agent, logger: logger)
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: [.init(service: watched, successTerminationBehavior: .gracefullyShutdownGroup)],
                gracefulShutdownSignals: [.sigterm, .sigint],
                logger: Logger(label: "services") { _ in AgentLog(level: .error) }))
        do {
            try await group.run()
            return true
        } catch {
            logger.critical("The agent ended: \(error)")
            return false
        }
    }

    /// Many connections and many images need many descriptors; systems are mean with the soft limit.
    private static func raiseFileLimit() {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
        limit.rlim_cur = limit.rlim_max
        // Refused: the soft limit has to do.
        _ = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }
}

/// The agent with an alarm clock: what hangs in a system call cannot hold the process.
private struct WatchedService: Service {
    let agent: Agent
    let logger: Logger

    func run() async throws {
        await withTaskGroup(of: Void.self) { group in
            group.addTask { await agent.run() }
            group.addTask {
                // They throw when the agent has ended first.
                guard (try? await gracefulShutdown()) != nil, !Task.isCancelled,
                    // As above.
                    (try? await Task.sleep(for: AgentMain.patience)) != nil
                else { return }
                logger.warning("Something hangs and is left behind: ending all the same")
                _exit(0)
            }
            await group.next()
            group.cancelAll()
        }
    }
}

extension AgentConfiguration {
    /// The command line's paths are relative to where the operator is.
    mutating func makePathsAbsolute() {
        guard let buffer = getcwd(nil, 0) else { return }
        defer { free(buffer) }
        let current = String(cString: buffer)
        func absolute(_ path: String) -> String {
            path.utf8.first == UInt8(ascii: "/") ? path : current + "/" + path
        }
        stateDirectory = absolute(stateDirectory)
        runtimeDirectory = absolute(runtimeDirectory)
        allowedDirectories = allowedDirectories.map(absolute)
        for index in drives.indices { drives[index].file = absolute(drives[index].file) }
        for index in exports.indices { exports[index].makeAbsolute(in: current) }
        hooks.onCompleted = hooks.onCompleted.map(absolute)
        hooks.onFailed = hooks.onFailed.map(absolute)
        if let directory = staging?.directory { staging?.directory = absolute(directory) }
    }
}
