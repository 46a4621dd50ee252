/// What the manager of jobs has of earlier runs, and where it keeps what happens.
package struct JobHistory: Sendable {
    /// How many job numbers are set aside at a time, so that a restart cannot give one out again.
    static let reservation: UInt64 = 1000

    let store: StateStore
    let writer: HistoryWriter
    let problems: AgentProblems
    /// The request keys of the last day.
    var keys: [RequestKeys.Kept] = []
    /// No job had a higher number.
    var lastNumber: UInt64 = 0
    /// Numbers up to this one are set aside.
    var reservedNumber: UInt64 = 0

    /// What `body` reads; nil, and a problem, when nothing can be read.
    func read<Value: Sendable>(
        _ body: (StateStore) async throws(AgentError) -> Value?
    ) async -> Value? {
        do throws(AgentError) { return try await body(store) } catch {
            problems.raise(.reading, error.message)
            return nil
        }
    }
}
