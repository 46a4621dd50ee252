internal import Glibc
internal import Synchronization

/// Standard output and standard error, which may be the same terminal, with one line at its bottom that is drawn anew.
///
/// Lines go out whole and in order. Writing waits for a slow reader: nothing else in this process is kept waiting by
/// it, and the agent merges what a slow watcher misses.
final class Console: Sendable {
    enum Stream: Sendable {
        case output, error
    }

    typealias Sink = @Sendable (Stream, String) -> Void

    private struct State {
        var statusLine = ""
    }

    private let state = Mutex(State())
    private let sink: Sink

    init(sink: @escaping Sink) {
        self.sink = sink
    }

    /// The process's own streams.
    static func standard() -> Console {
        Console { stream, text in write(text, to: stream == .output ? STDOUT_FILENO : STDERR_FILENO) }
    }

    /// Prints a line, above the status line if there is one.
    func print(_ line: String, to stream: Stream = .output) {
        state.withLock { state in
            if !state.statusLine.isEmpty { sink(.error, Self.erase) }
            sink(stream, line + "\n")
            if !state.statusLine.isEmpty { sink(.error, state.statusLine) }
        }
    }

    /// Draws the line at the bottom of the terminal; an empty one takes it away.
    ///
    /// `line` must be narrower than the terminal, or erasing it would leave a part behind.
    func setStatus(_ line: String) {
        state.withLock { state in
            guard line != state.statusLine else { return }
            sink(.error, Self.erase + line)
            state.statusLine = line
        }
    }

    /// Draws the status line once more, after the terminal has changed its size.
    func redrawStatus() {
        state.withLock { state in
            if !state.statusLine.isEmpty { sink(.error, Self.erase + state.statusLine) }
        }
    }

    /// To the start of the line, and what is right of it erased (ECMA-48, EL).
    private static let erase = "\r\u{1B}[K"
}

/// Writes all of `text`. A reader that is gone ends the process, quietly, as it ends other commands.
private func write(_ text: String, to descriptor: Int32) {
    var text = text
    text.withUTF8 { bytes in
        var rest = UnsafeRawBufferPointer(bytes)
        while let start = rest.baseAddress, !rest.isEmpty {
            let count = Glibc.write(descriptor, start, rest.count)
            if count >= 0 {
                rest = UnsafeRawBufferPointer(rebasing: rest[count...])
            } else if errno == EAGAIN {
                // Somebody else made the terminal or pipe non-blocking; it is not ours to change.
                var poll = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                _ = Glibc.poll(&poll, 1, -1)
            } else if errno != EINTR {
                // Nothing can be said any more where it would be heard; but a full disk is no success.
                let isBrokenPipe = errno == EPIPE
                if isBrokenPipe { dieOfBrokenPipe() }
                if descriptor == STDOUT_FILENO {
                    let reason = String(cString: strerror(errno))
                    write("drive-backup: couldn't write to standard output: \(reason)\n", to: STDERR_FILENO)
                }
                _exit(ExitStatus.failed.rawValue)
            }
        }
    }
}

/// Ends the process as SIGPIPE would have. It is ignored otherwise, for the sake of the agent's socket.
private func dieOfBrokenPipe() -> Never {
    signal(SIGPIPE, SIG_DFL)
    kill(getpid(), SIGPIPE)
    _exit(ExitStatus.brokenPipe.rawValue)
}
