internal import DriveBackupClient

/// What a command works with while it runs.
struct Session: Sendable {
    let surroundings: Surroundings
    let console: Console
    /// Whether JSON is wanted.
    let json: Bool
    /// The address as it was given.
    let agent: String
    /// How a command that works with the same agent begins, for hints.
    let prefix: String

    init(_ options: GlobalOptions, surroundings: Surroundings, console: Console) {
        self.surroundings = surroundings
        self.console = console
        json = options.json
        agent = options.agent ?? surroundings.defaultAgent
        prefix = options.agent.map { "drive-backup --agent \($0)" } ?? "drive-backup"
    }

    /// Connects to the agent, does `body`, and closes the connection.
    ///
    /// - Parameter what: what the command is about, for the message if the agent refuses or cannot be reached.
    func withAgent<Result: Sendable>(
        _ what: String, _ body: (DriveBackupClient) async throws(RPCStatus) -> Result
    ) async throws(CommandFailure) -> Result {
        let client = try await connect()
        let result: Result
        do throws(RPCStatus) {
            result = try await body(client)
        } catch {
            await client.close()
            throw CommandFailure(what, error)
        }
        await client.close()
        return result
    }

    /// Connects to the agent.
    func connect() async throws(CommandFailure) -> DriveBackupClient {
        let address = try address()
        do throws(RPCStatus) {
            return try await DriveBackupClient.connect(to: address)
        } catch {
            throw CommandFailure(ExitStatus(error), error.message)
        }
    }

    /// Where the agent is.
    func address() throws(CommandFailure) -> RPCAddress {
        do throws(RPCStatus) {
            return try RPCAddress(parsing: agent)
        } catch {
            throw .usage("the agent's address: \(error.message)")
        }
    }

    /// Prints an object for programs.
    func print(_ message: some WireMessage) { console.print(message.json()) }
}
