internal import Dispatch
internal import Glibc

/// The signals that a command which waits does something about.
enum Signals {
    private enum Arrival: Sendable {
        /// The terminal has another size.
        case resized
        /// The process shall end: Ctrl-C, a closed terminal, or a plain `kill`.
        case ending(ExitStatus)
    }

    /// Has a thread though all of Swift's wait for a reader.
    private static let queue = DispatchQueue(label: "signals")

    /// How long the process goes on after it was told to end, in seconds.
    private static let patience = 2.0

    /// Waits for a signal that ends the process and returns how, or returns nil when the task is cancelled. Until then
    /// none of them ends the process by itself, and `onResize` is called when the terminal has another size.
    static func ending(onResize: () async -> Void) async -> ExitStatus? {
        let (arrivals, continuation) = AsyncStream.makeStream(
            of: Arrival.self, bufferingPolicy: .bufferingNewest(8))
        var sources: [any DispatchSourceSignal] = []
        for (number, arrival) in table {
            // What was ignored when we were started, by nohup for example, stays ignored.
            let before = signal(number, SIG_IGN)
            guard number == SIGWINCH || !isIgnored(before) else { continue }
            let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
            source.setEventHandler {
                continuation.yield(arrival)
                guard case .ending(let status) = arrival else { return }
                // What is still to be said may wait for a reader who does not come.
                queue.asyncAfter(deadline: .now() + patience) { _exit(status.rawValue) }
            }
            source.resume()
            sources.append(source)
        }
        defer {
            for source in sources {
                source.cancel()
                signal(Int32(source.handle), SIG_DFL)
            }
        }
        for await arrival in arrivals {
            switch arrival {
            case .resized: await onResize()
            case .ending(let status): return status
            }
        }
        return nil
    }

    private static var table: [(Int32, Arrival)] {
        [
            (SIGWINCH, .resized), (SIGINT, .ending(.interrupted)), (SIGTERM, .ending(.terminated)),
            (SIGHUP, .ending(.hungUp)),
        ]
    }

    private static func isIgnored(_ handler: (@convention(c) (Int32) -> Void)?) -> Bool {
        unsafeBitCast(handler, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self)
    }
}
