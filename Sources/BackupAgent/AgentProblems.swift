package import Logging
internal import Synchronization

/// What is wrong with the agent itself, as `agent info` tells it.
package final class AgentProblems: Sendable {
    /// What a problem is about; there is one of each at most.
    enum Subject: Int, Sendable, Comparable {
        case directories, state, numbers, history, lostHistory, reading

        static func < (one: Self, other: Self) -> Bool { one.rawValue < other.rawValue }
    }

    private let all = Mutex<[Subject: String]>([:])
    private let logger: Logger

    package init(logger: Logger) { self.logger = logger }

    /// A sentence each.
    package var sentences: [String] {
        all.withLock { all in all.sorted { $0.key < $1.key }.map(\.value) }
    }

    /// Tells of a problem, in the log as well when it is new.
    func raise(_ subject: Subject, _ sentence: String) {
        let isNew = all.withLock { $0.updateValue(sentence, forKey: subject) != sentence }
        if isNew { logger.error("\(sentence)") }
    }

    /// The problem is gone.
    func clear(_ subject: Subject) {
        guard all.withLock({ $0.removeValue(forKey: subject) }) != nil else { return }
        logger.notice("This is over: \(Self.words(subject))")
    }

    private static func words(_ subject: Subject) -> String {
        switch subject {
        case .directories: "the agent's directories could not be used"
        case .state: "the agent's state could not be kept"
        case .numbers: "numbers of events and jobs could not be set aside"
        case .history: "the history could not be written"
        case .lostHistory: "some of the history is lost"
        case .reading: "the history could not be read"
        }
    }
}
