internal import ArgumentParser
internal import Glibc

/// The command `drive-backup`, from its arguments to its exit status.
package enum CommandLineTool {
    /// Runs the command that the process was started with, and exits with its status.
    package static func main() async -> Never {
        // A lost agent or a closed pipe is told by the call that writes, not by a signal that ends everything.
        signal(SIGPIPE, SIG_IGN)
        let arguments = Array(CommandLine.arguments.dropFirst())
        let console = Console.standard()
        guard CommandLine.isUTF8 else {
            complain("the command line is not UTF-8, which names on the wire are", on: console)
            exit(ExitStatus.usage.rawValue)
        }
        let status = await run(arguments, surroundings: .current(), console: console)
        exit(status.rawValue)
    }

    /// Runs the command that `arguments` say, without the program's name.
    static func run(_ arguments: [String], surroundings: Surroundings, console: Console) async -> ExitStatus {
        do {
            var command = try DriveBackupCommand.parseAsRoot(arguments)
            if let command = command as? any ToolCommand {
                let session = Session(command.global, surroundings: surroundings, console: console)
                return try await command.run(in: session)
            }
            // Help, or a command that needs another word.
            try command.run()
            return .done
        } catch let failure as CommandFailure {
            if !failure.message.isEmpty { complain(failure.message, on: console) }
            return failure.status
        } catch {
            return report(error, of: arguments, on: console)
        }
    }

    /// Says what ArgumentParser has to say: help and version as they are, an error in one line.
    private static func report(_ error: any Error, of arguments: [String], on console: Console) -> ExitStatus
    {
        guard DriveBackupCommand.exitCode(for: error) != .success else {
            console.print(DriveBackupCommand.fullMessage(for: error))
            return .done
        }
        let path = commandPath(arguments)
        let message = DriveBackupCommand.message(for: error)
            .split(whereSeparator: \.isNewline).joined(separator: " ")
        let place = path.isEmpty ? "" : path.joined(separator: " ") + ": "
        let help = (["drive-backup", "help"] + path).joined(separator: " ")
        complain("\(place)\(message) ('\(help)' tells more)", on: console)
        return .usage
    }

    private static func complain(_ message: String, on console: Console) {
        let line = message.split(whereSeparator: \.isNewline).joined(separator: " ")
        console.print("drive-backup: \(ColumnText.printable(line))", to: .error)
    }

    /// The names of the commands that `arguments` begin with, options left out: `["job", "pause"]`.
    static func commandPath(_ arguments: [String]) -> [String] {
        var command: any ParsableCommand.Type = DriveBackupCommand.self
        var path: [String] = []
        var rest = arguments[...]
        while let word = rest.popFirst() {
            if word == "--agent" { _ = rest.popFirst() }
            if word.hasPrefix("-") { continue }
            guard let next = command.configuration.subcommands.first(where: { $0._commandName == word })
            else { break }
            command = next
            path.append(word)
        }
        return path
    }
}

extension CommandLine {
    /// Swift mends what is no UTF-8, and would have us name another file than the one that was meant.
    fileprivate static var isUTF8: Bool {
        UnsafeBufferPointer(start: unsafeArgv, count: Int(argc))
            .allSatisfy { $0.map { String(validatingCString: $0) != nil } ?? true }
    }
}
