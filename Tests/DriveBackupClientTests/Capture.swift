import Synchronization

@testable import DriveBackupCLI

/// What a command has printed.
final class Capture: Sendable {
    private let streams = Mutex((output: "", error: ""))

    var console: Console {
        Console { stream, text in
            self.streams.withLock { streams in
                if stream == .output { streams.output += text } else { streams.error += text }
            }
        }
    }

    var output: String { streams.withLock { $0.output } }
    var error: String { streams.withLock { $0.error } }
    var outputLines: [String] { output.split(separator: "\n").map(String.init) }
    var errorLines: [String] { error.split(separator: "\n").map(String.init) }
}

extension Surroundings {
    /// A shell in `/pool/dir`, whose standard error is a file.
    static func test(_ environment: [String: String] = [:], isTerminal: Bool = false) -> Surroundings {
        Surroundings(environment: environment, currentDirectory: "/pool/dir", errorIsTerminal: isTerminal)
    }
}
