package import BlockIO
internal import Glibc
internal import Synchronization

/// The engines that drives are spread over: as many as cores, started when they are first needed.
package final class EnginePool: Sendable {
    private struct State {
        var engines: [any IOEngine] = []
        /// How many drives each of them has.
        var drives: [Int] = []
        var reading: (any IOEngine)?
    }

    /// What the engines are.
    package let kind: EngineKind
    private let maximum: Int
    private let state = Mutex(State())

    package init(kind: EngineKind, maximum: Int = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))) {
        self.kind = kind
        self.maximum = maximum
    }

    /// The engine for one more drive, which has the fewest, or for what needs one for a while. When the drive is open `serve` is to be
    /// called, and when it is not, or not any more, `release`.
    package func engine(forDrive isDrive: Bool = true) throws(BlockError) -> any IOEngine {
        try state.withLock { state throws(BlockError) in
            let least = state.drives.indices.min { state.drives[$0] < state.drives[$1] }
            var place = least ?? 0
            if state.engines.isEmpty || isDrive && state.engines.count < maximum && state.drives[place] > 0 {
                state.engines.append(try kind.makeEngine(name: "drives \(state.engines.count)"))
                state.drives.append(0)
                place = state.engines.count - 1
            }
            if isDrive { state.drives[place] += 1 }
            return state.engines[place]
        }
    }

    /// The drive for which `engine` was asked for is open. An engine that serves several drives waits for the disk of none.
    package func serve(on engine: any IOEngine) {
        state.withLock { state in
            guard let place = state.engines.firstIndex(where: { $0 === engine }), state.drives[place] > 1
            else { return }
            engine.share()
        }
    }

    /// The drive for which `engine` was asked for is not open any more.
    package func release(_ engine: any IOEngine) {
        state.withLock { state in
            if let place = state.engines.firstIndex(where: { $0 === engine }) { state.drives[place] -= 1 }
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

    /// Ends all engines. No drive is open any more.
    package func shutDown() async {
        let engines = state.withLock { state in
            defer { (state.engines, state.drives, state.reading) = ([], [], nil) }
            return state.engines + (state.reading.map { [$0] } ?? [])
        }
        for engine in engines { await engine.shutDown() }
    }
}
