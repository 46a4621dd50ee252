package import BlockIO
internal import Glibc
internal import Synchronization

/// The engines that drives are spread over: as many as cores, started when they are first needed.
package final class EnginePool: Sendable {
    private struct State {
        var engines: [any IOEngine] = []
        var next = 0
    }

    /// What the engines are.
    package let kind: EngineKind
    private let maximum: Int
    private let state = Mutex(State())

    package init(kind: EngineKind, maximum: Int = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))) {
        self.kind = kind
        self.maximum = maximum
    }

    /// The engine for one more drive.
    package func engine() throws(BlockError) -> any IOEngine {
        try state.withLock { state throws(BlockError) in
            if state.engines.count < maximum {
                state.engines.append(try kind.makeEngine(name: "drives \(state.engines.count)"))
            }
            state.next += 1
            return state.engines[state.next % state.engines.count]
        }
    }

    /// Ends all engines. No drive is open any more.
    package func shutDown() async {
        let engines = state.withLock { state in
            defer { state.engines = [] }
            return state.engines
        }
        for engine in engines { await engine.shutDown() }
    }
}
