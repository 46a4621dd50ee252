internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup agent`: the agent itself.
struct AgentCommands: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "agent",
        abstract: "See who the agent is and whether it answers.",
        subcommands: [AgentInfoCommand.self, AgentPingCommand.self])

    @OptionGroup var global: GlobalOptions

    func run() throws { throw Self.missingVerb }
}

struct AgentInfoCommand: ToolCommand {
    static let configuration = CommandConfiguration(commandName: "info", abstract: "Show who the agent is.")

    @OptionGroup var global: GlobalOptions

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let info = try await session.withAgent("couldn't ask the agent") { client throws(RPCStatus) in
            try await client.agent.info()
        }
        if session.json {
            session.print(info)
        } else {
            for line in lines(info) { session.console.print(line) }
        }
        return .done
    }

    private func lines(_ info: AgentInfo) -> [String] {
        func many(_ count: UInt32, _ word: String) -> String { "\(count) \(word)\(count == 1 ? "" : "s")" }
        let places =
            info.allowedDirectories.isEmpty
            ? "any file, for root on its own socket" : info.allowedDirectories.joined(separator: ", ")
        let facts = [
            ("version", "\(info.version), protocol \(info.protocolVersion), process \(info.pid)"),
            ("since", TimeText.instant(nanoseconds: info.startedAt)),
            ("has", "\(many(info.drives, "drive")), \(many(info.jobs, "running job"))"),
            ("engine", info.engine),
            ("event", "\(info.lastSequence)"),
            ("listens", info.addresses.joined(separator: ", ")),
            ("allows", places),
        ]
        let problems = info.problems.map { ("problem", $0) }
        return (facts + problems).map { "\(ColumnText.padded($0, to: 8)) \(ColumnText.printable($1))" }
    }
}

struct AgentPingCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "ping", abstract: "Ask the agent for an answer and tell how long it took.")

    @OptionGroup var global: GlobalOptions

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        // A call rather than a ping of the connection: it shows that the agent works, not only that its socket does.
        let time = try await session.withAgent("couldn't ping the agent") { client throws(RPCStatus) in
            let start = ContinuousClock.now
            _ = try await client.agent.info()
            return ContinuousClock.now - start
        }
        let nanoseconds = time.inNanoseconds
        if session.json {
            session.console.print("{\"round_trip_ns\":\(nanoseconds)}")
        } else {
            session.console.print("the agent at \(session.agent) answered in \(nanoseconds / 1000) µs")
        }
        return .done
    }
}
