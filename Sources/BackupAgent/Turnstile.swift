/// Lets operations through one after another, in the order in which they came. Whoever asks for one may be cancelled; an
/// operation that has its turn is done to its end.
actor Turnstile {
    private var last: Task<Void, Never>?

    /// Waits for its turn, does `body`, and returns what it returns.
    func pass<Value: Sendable, Failure: Error>(
        _ body: @escaping @Sendable () async throws(Failure) -> Value
    ) async throws(Failure) -> Value {
        let previous = last
        let task = Task { () async -> Result<Value, Failure> in
            await previous?.value
            do throws(Failure) { return .success(try await body()) } catch { return .failure(error) }
        }
        last = Task { _ = await task.value }
        return try await task.value.get()
    }
}
