internal import DriveBackupClient

/// Why a command failed: the exit status, and what to say on standard error after `drive-backup: `.
struct CommandFailure: Error, Hashable {
    var status: ExitStatus
    /// One line; empty when everything has been said.
    var message: String

    init(_ status: ExitStatus, _ message: String) {
        self.status = status
        self.message = message
    }

    /// The command cannot be meant as it was typed.
    static func usage(_ message: String) -> CommandFailure { CommandFailure(.usage, message) }

    /// The agent refused, or could not be reached, when asked `what`.
    init(_ what: String, _ error: RPCStatus) {
        // The agent often says itself what it couldn't do; twice is once too often.
        let said = error.message.hasPrefix("Couldn't ") ? "couldn't " + error.message.dropFirst(9) : nil
        self.init(ExitStatus(error), said ?? "\(what): \(error.message)")
    }
}
