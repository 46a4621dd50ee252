/// The kinds of engine there are, by the names people write.
package enum EngineKind: String, CaseIterable, Sendable {
    case ring, threads

    /// Starts an engine of this kind; `name` appears in logs and in the names of its threads.
    package func makeEngine(name: String) throws(BlockError) -> any IOEngine {
        ThreadsEngine(name: name)
    }

    /// The best kind that this system allows.
    package static func preferred() -> EngineKind { .threads }
}
