package import BlockIO
internal import Glibc
internal import Synchronization

/// The engines that drives are spread over: as many as cores, started when they are first needed.
package final class EnginePool: Sendable {
    private struct State {
        var engines: [any IOEngine] = []
        var reading: (any IOEngine)?
        /// How many drives were given an engine.
        var drives = 0
    }

    /// What the engines are.
    package let kind: EngineKind
    private let maximum: Int
    private let state = Mutex(State())

    package init(kind: EngineKind, maximum: Int = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))) {
        self.kind = kind
        self.maximum = maximum
    }

    /// The engine for one more drive, or for what needs one for a while. One that serves several drives waits for the disk
    /// of none.
    package func engine(forDrive isDrive: Bool = true) throws(BlockError) -> any IOEngine {
        try state.withLock { state throws(BlockError) in
            let place = state.drives % maximum
            let engine = try place < state.engines.count ? state.engines[place] : add(to: &state)
            guard isDrive else { return engine }
            if state.drives >= maximum { engine.share() }
            state.drives += 1
            return engine
        }
    }

    /// The engine for backups that are read back. It serves no drive: where they lie may hang, and no guest waits for that.
    package func readingEngine() throws(BlockError) -> any IOEngine {
        try state.withLock { state throws(BlockError) in
            if let engine = state.reading { return engine }
            let engine = try kind.makeEngine(name: "backups")
            engine.share()
            state.reading = engine
            return engine
        }
    }

    private func add(to state: inout State) throws(BlockError) -> any IOEngine {
        let engine = try kind.makeEngine(name: "drives \(state.engines.count)")
        state.engines.append(engine)
        return engine
    }

    /// Ends all engines. No drive is open any more.
    package func shutDown() async {
        let engines = state.withLock { state in
            defer { (state.engines, state.reading) = ([], nil) }
            return state.engines + (state.reading.map { [$0] } ?? [])
        }
        for engine in engines { await engine.shutDown() }
    }
}
