internal import CBlockIO
internal import Glibc

// One run of a hook: a child without a shell, with two pipes, watched by a thread of its own that waits for everything at
// once. Whatever the child does (reads nothing, prints without end, hangs, leaves children behind), the thread's next step
// has a time.

/// An operator's program for the end of a job.
struct HookProcess: Sendable {
    /// Absolute.
    var executable: String
    /// `NAME=VALUE` each, and nothing else is in it.
    var environment: [String]
    var input: [UInt8]
    /// How long it may take.
    var limit: Duration
    /// How long it may take to end after SIGTERM.
    var grace: Duration = .seconds(5)

    /// How a run ended.
    struct Outcome: Sendable, Hashable {
        enum End: Sendable, Hashable {
            case exited(Int32)
            case killed(signal: Int32)
            /// Ended by us.
            case timedOut
            case notStarted(errno: Int32)
        }

        var end: End
        /// What it printed, the first lines.
        var lines: [String] = []
        /// It printed more.
        var isCut = false
    }

    /// What of the output is kept.
    static let lineLimit = (count: 100, bytes: 1000)

    /// Runs the program and waits for its end. Blocks, but no longer than `limit` and `grace` and a little.
    func run() -> Outcome {
        // A child that closes its input makes writing fail, and ends nobody.
        var signals = sigset_t()
        sigemptyset(&signals)
        sigaddset(&signals, SIGPIPE)
        pthread_sigmask(SIG_BLOCK, &signals, nil)
        var (input, output): (Int32, Int32) = (-1, -1)
        var child: pid_t = 0
        var variables = environment.map { strdup($0) } + [nil]
        defer { for text in variables { free(text) } }
        let error = cblockio_spawn_hook(executable, &variables, &input, &output, &child)
        guard error == 0 else { return Outcome(end: .notStarted(errno: -error)) }
        var watch = Watch(child: child, input: input, output: output, text: self.input)
        return watch.run(limit: limit, grace: grace)
    }
}

/// Watches a child until it has ended, and closes our ends of its pipes.
private struct Watch {
    private let child: pid_t
    private let output: Int32
    /// Closed as soon as the child has it all; -1 then.
    private var input: Int32
    private var rest: ArraySlice<UInt8>
    private var lines: [String] = []
    private var line: [UInt8] = []
    private var isCut = false
    private var hasOutput = true

    init(child: pid_t, input: Int32, output: Int32, text: [UInt8]) {
        self.child = child
        self.input = input
        self.output = output
        rest = text[...]
    }

    mutating func run(limit: Duration, grace: Duration) -> HookProcess.Outcome {
        defer {
            closeInput()
            close(output)
        }
        var deadline = ContinuousClock.now + limit
        var isTimedOut = false
        var status: Int32 = 0
        while true {
            wait(until: deadline)
            // The group is signalled before its leader is waited for: until then its number is nobody else's.
            if hasExited { break }
            guard ContinuousClock.now >= deadline else { continue }
            kill(-child, isTimedOut ? SIGKILL : SIGTERM)
            isTimedOut = true
            deadline = ContinuousClock.now + grace
        }
        if isTimedOut { kill(-child, SIGKILL) }
        while waitpid(child, &status, 0) < 0 && errno == EINTR {}
        read()
        endLine()
        let end: HookProcess.Outcome.End =
            if isTimedOut {
                .timedOut
            } else if status & 0x7f == 0 {
                .exited(status >> 8 & 0xff)
            } else {
                .killed(signal: status & 0x7f)
            }
        return HookProcess.Outcome(end: end, lines: lines, isCut: isCut)
    }

    /// Whether the child has ended; it stays to be waited for.
    private var hasExited: Bool {
        var info = siginfo_t()
        let result = waitid(P_PID, id_t(child), &info, WEXITED | WNOHANG | WNOWAIT)
        // Somebody else has waited for it.
        return result == 0 ? info.si_signo == SIGCHLD : errno == ECHILD
    }

    /// Passes on what there is to pass on, until something has happened or it is time.
    private mutating func wait(until deadline: ContinuousClock.Instant) {
        // The child's end is looked for ten times a second: a descriptor for it is not to be had everywhere.
        let left = min(max(deadline - .now, .zero), .milliseconds(100))
        var descriptors = [
            pollfd(fd: hasOutput ? output : -1, events: Int16(POLLIN), revents: 0),
            pollfd(fd: input, events: Int16(POLLOUT), revents: 0),
        ]
        let milliseconds = Int32(left.components.attoseconds / 1_000_000_000_000_000)
        guard poll(&descriptors, nfds_t(descriptors.count), milliseconds) > 0 else { return }
        if descriptors[0].revents != 0 { read() }
        if descriptors[1].revents != 0 { write() }
    }

    private mutating func write() {
        let count = rest.withUnsafeBytes { Glibc.write(input, $0.baseAddress, $0.count) }
        if count > 0 { rest.removeFirst(count) }
        // It reads no more: what is left is for nobody.
        if count < 0, errno != EAGAIN, errno != EINTR { rest = [] }
        if rest.isEmpty { closeInput() }
    }

    private mutating func closeInput() {
        if input >= 0 { close(input) }
        input = -1
    }

    private mutating func read() {
        var buffer = [UInt8](repeating: 0, count: 16384)
        while hasOutput {
            let count = buffer.withUnsafeMutableBytes { Glibc.read(output, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            if count < 0, errno == EAGAIN { return }
            guard count > 0 else {
                hasOutput = false
                return
            }
            for byte in buffer[..<count] { add(byte) }
            // One that prints without end is not waited for: the time is looked at in between.
            if count < buffer.count { return }
            if isCut { return }
        }
    }

    private mutating func add(_ byte: UInt8) {
        if byte == 0x0a {
            endLine()
        } else if line.count < HookProcess.lineLimit.bytes, lines.count < HookProcess.lineLimit.count {
            line.append(byte)
        } else {
            isCut = true
        }
    }

    private mutating func endLine() {
        guard !line.isEmpty else { return }
        lines.append(String(decoding: line, as: UTF8.self))
        line = []
    }
}
