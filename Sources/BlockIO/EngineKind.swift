/// The kinds of engine there are, by the names people write.
package enum EngineKind: String, CaseIterable, Sendable {
    case ring, threads

    /// Starts an engine of this kind; `name` appears in logs and in the names of its threads. Throws `.unsupported` or
    /// `.denied` when the system refuses io_uring to a ring.
    package func makeEngine(name: String) throws(BlockError) -> any IOEngine {
        switch self {
        case .ring: try RingEngine(name: name)
        case .threads: ThreadsEngine(name: name)
        }
    }

    /// The best kind that this system allows; found out once.
    package static func preferred() -> EngineKind { preferredKind }

    private static let preferredKind: EngineKind = {
        do throws(BlockError) {
            try RingQueue(depth: 8).end()
            return .ring
        } catch {
            // Refused by the kernel, its configuration or a sandbox: threads do the same work.
            return .threads
        }
    }()
}
