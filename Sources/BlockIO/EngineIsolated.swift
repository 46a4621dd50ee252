/// State that is touched on one engine's thread only, which takes the place of a lock.
///
/// The steps of code on an engine between two `await`s are atomic among themselves, so such state needs no mutex; each
/// access checks that it is made on the engine's thread and traps otherwise. Never hold on to it across an `await`:
/// others change it there. It is used dozens of times a request, by other modules, and is generic: inlinable, and public, as the
/// compiler does not hand what is for the package alone to other modules, whatever is said of it.
public struct EngineIsolated<State: ~Copyable>: Sendable {
    // SAFETY: `state` is reached through `withState` and `value` alone, which trap unless the calling thread is the
    // engine's own; one thread cannot race with itself. (Inlinable code cannot use what is private: nothing else in this
    // module may touch it.) The last release may happen on another thread, when by definition nobody uses the state any
    // more.
    @usableFromInline
    final class Storage: @unchecked Sendable {
        // Tests, which are built for debugging, find accesses that overlap; to look for them takes as long as the access.
        #if DEBUG
        @usableFromInline
        var state: State
        #else
        @usableFromInline
        @exclusivity(unchecked)
        var state: State
        #endif
        init(_ state: consuming State) { self.state = state }
    }

    @usableFromInline
    let storage: Storage
    /// The engine on whose thread the state lives.
    package let engine: any IOEngine
    @usableFromInline
    let owner: EngineOwner

    /// Keeps `state` for `engine`; may be called on any thread, with state that nobody else refers to.
    package init(_ state: consuming State, engine: any IOEngine) {
        storage = Storage(state)
        self.engine = engine
        owner = engine.owner
    }

    @inlinable
    func preconditionCurrent() {
        if !owner.isCurrent { preconditionSlowly() }
    }

    @usableFromInline
    func preconditionSlowly() { engine.preconditionCurrent() }

    /// Reads and changes the state; traps when called elsewhere than on the engine's thread.
    @inlinable
    public func withState<Result: ~Copyable, Failure: Error>(
        _ body: (inout State) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        preconditionCurrent()
        return try body(&storage.state)
    }
}

extension EngineIsolated where State: ~Copyable {
    /// The state itself, to be read or changed in place; traps elsewhere than on the engine's thread.
    @inlinable
    public var value: State {
        _read {
            preconditionCurrent()
            yield storage.state
        }
        nonmutating _modify {
            preconditionCurrent()
            yield &storage.state
        }
    }
}
