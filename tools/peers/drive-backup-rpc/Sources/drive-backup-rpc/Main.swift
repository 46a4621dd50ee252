internal import DriveBackupClient
internal import Glibc

/// The product in the rpc rows of tools/bench.
///
///     drive-backup-rpc serve SOCKET                      answers until it is killed
///     drive-backup-rpc unary SOCKET CALLS SECONDS        so many calls at once on one connection
///     drive-backup-rpc stream SOCKET EVENTS WATCHERS     so many events to each watcher but the last, which is slow
///     drive-backup-rpc watch N ADDRESS                   N idle watchers of a real agent, each with its connection
///
/// Results are one line of JSON, the same from all peers.
@main
struct Main {
    static func main() async throws {
        signal(SIGPIPE, SIG_IGN)
        let words = Array(CommandLine.arguments.dropFirst())
        func number(_ index: Int) -> Int {
            guard index < words.count, let number = Int(words[index]), number > 0 else { usage() }
            return number
        }
        switch (words.first, words.count) {
        case ("serve", 2): try await serve(words[1])
        case ("unary", 4): try await unary(words[1], calls: number(2), seconds: number(3))
        case ("stream", 4): try await stream(words[1], events: number(2), watchers: number(3))
        case ("watch", 3): try await watch(number(1), words[2])
        default: usage()
        }
    }

    private static func usage() -> Never {
        let text = Array(
            ("usage: drive-backup-rpc serve SOCKET | unary SOCKET CALLS SECONDS | stream SOCKET EVENTS WATCHERS"
                + " | watch N ADDRESS\n").utf8)
        _ = write(STDERR_FILENO, text, text.count)
        exit(64)
    }
}
