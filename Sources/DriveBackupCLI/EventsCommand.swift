internal import ArgumentParser
internal import DriveBackupClient

/// `drive-backup events`: what has happened in the agent.
struct EventsCommand: ToolCommand {
    static let configuration = CommandConfiguration(
        commandName: "events",
        abstract: "Print what happened, and what happens, to jobs.",
        discussion: """
            The agent keeps events as long as their jobs (see its option --history-age), over its restarts. Each has a \
            number; --after goes on where another call left off, and nothing but progress in between is missed.

            Examples:
              drive-backup events
              drive-backup --json events --follow --after 1200
            """)

    @OptionGroup var global: GlobalOptions

    @Flag(help: "Go on with events as they happen, until Ctrl-C.")
    var follow = false

    @Option(help: ArgumentHelp("Only events with a higher sequence number.", valueName: "n"))
    var after: UInt64 = 0

    func run(in session: Session) async throws(CommandFailure) -> ExitStatus {
        let client = try await session.connect()
        var last = after
        do throws(RPCStatus) {
            for try await event in try await client.agent.events(after: after, follow: follow) {
                last = max(last, event.sequence)
                if session.json { session.print(event) } else { session.console.print(EventText.line(event)) }
            }
        } catch {
            await client.close()
            let failure = CommandFailure("couldn't read the events", error)
            guard error.code == .unavailable else { throw failure }
            throw CommandFailure(failure.status, failure.message.continued(by: "--after \(last) goes on"))
        }
        await client.close()
        return .done
    }
}
