internal import BlockIO
internal import Logging

/// The files that jobs have made for targets and that are still to be removed: remembered in the agent's state, tried again
/// until they are gone, and removed one attempt at a time, since the number of a file that is gone may be that of a new one.
actor TargetLeftovers {
    private struct Entry {
        let file: TargetLeftover
        /// All names that jobs may call the target by.
        let names: Set<String>
        /// Called once the file is gone, before anybody is told.
        var gone: [@Sendable () -> Void]
        var attempt: OneShot<BlockError?>?
        var retries: Task<Void, Never>?
    }

    private static let delays = (first: Duration.seconds(1), last: Duration.seconds(60))

    private let store: StateStore?
    private let logger: Logger
    private var entries: [TargetLeftover: Entry] = [:]
    private var remove: @Sendable (TargetLeftover) async -> BlockError? = { _ in nil }
    private var isEnded = false

    init(store: StateStore?, logger: Logger) {
        self.store = store
        self.logger = logger
    }

    /// Says how a file is removed, and begins with those that earlier agents have left.
    func begin(removing: @escaping @Sendable (TargetLeftover) async -> BlockError?) async throws(AgentError) {
        remove = removing
        for file in try await store?.leftovers() ?? [] { add(file, aliases: []) {} }
    }

    /// Nothing is removed any more.
    func end() {
        isEnded = true
        for entry in entries.values { entry.retries?.cancel() }
    }

    /// Remembers a file that is to be removed, over a restart as well.
    func record(_ file: TargetLeftover) async {
        do throws(AgentError) { try await store?.add(file) } catch {
            logger.error(
                "\(error.message); should the agent end before it has removed \(file.path).partial, that stays"
            )
        }
    }

    /// Removes a file in the background; it was recorded. `gone` is called when it is gone.
    func add(_ file: TargetLeftover, aliases: Set<String>, gone: @escaping @Sendable () -> Void) {
        guard !isEnded else { return }
        if entries[file] != nil {
            entries[file]?.gone.append(gone)
            return
        }
        entries[file] = Entry(file: file, names: aliases.union([file.path]), gone: [gone])
        entries[file]?.retries = Task { await self.retry(file) }
    }

    /// Waits until nothing is to be removed of a target any more, but not long: then why it still is.
    func settle(_ path: String, within limit: Duration) async -> BlockError? {
        for entry in entries.values where entry.names.contains(path) {
            let outcome = await attempt(entry.file).wait(atMost: limit)
            guard let outcome else {
                return BlockError(.busy, "the removal takes its time, as on a file system that hangs")
            }
            if let failure = outcome { return failure }
        }
        return nil
    }

    private func retry(_ file: TargetLeftover) async {
        var delay = Self.delays.first
        var isTold = false
        while let failure = await attempt(file).wait() ?? nil, !Task.isCancelled {
            if !isTold {
                logger.warning(
                    "Couldn't remove yet what the job \(file.jobID) has left of \(file.path): \(failure.message)"
                )
            }
            isTold = true
            // Ended early at the agent's end.
            try? await Task.sleep(for: delay)
            delay = min(delay * 2, Self.delays.last)
        }
    }

    /// The attempt that is being made, or a new one.
    private func attempt(_ file: TargetLeftover) -> OneShot<BlockError?> {
        let outcome = OneShot<BlockError?>()
        guard let entry = entries[file], !isEnded else {
            outcome.fulfil(nil)
            return outcome
        }
        if let running = entry.attempt { return running }
        entries[file]?.attempt = outcome
        // It ends with the process that makes the attempt.
        Task {
            let failure = await remove(file)
            if failure == nil { await forget(file) }
            entries[file]?.attempt = nil
            outcome.fulfil(failure)
        }
        return outcome
    }

    /// A file that was recorded is gone. It is forgotten before another can be made that has its number.
    func forget(_ file: TargetLeftover) async {
        do throws(AgentError) { try await store?.remove(file) } catch {
            logger.error(
                "\(error.message); another file that gets its number may be taken for it after a restart")
        }
        for tell in entries.removeValue(forKey: file)?.gone ?? [] { tell() }
    }
}
