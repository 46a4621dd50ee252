internal import Logging
internal import Synchronization

/// Writes down which event numbers may have been given out, one reservation after the other, off everybody's
/// way.
final class SequenceKeeper: Sendable {
    private let store: StateStore
    private let logger: Logger
    private let last = Mutex<Task<Void, Never>?>(nil)

    init(store: StateStore, logger: Logger) {
        self.store = store
        self.logger = logger
    }

    /// Begins to record that numbers up to `sequence` may be given out.
    func reserve(_ sequence: UInt64) {
        last.withLock { last in
            let previous = last
            last = Task {
                await previous?.value
                do throws(AgentError) { try await store.reserve(sequence: sequence) } catch {
                    // The numbers set aside before are many; the next reservation may succeed.
                    logger.error("\(error.message)")
                }
            }
        }
    }

    /// Waits for what was begun.
    func finish() async { await last.withLock { $0 }?.value }
}
