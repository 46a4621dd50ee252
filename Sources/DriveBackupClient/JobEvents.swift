public import DriveBackupRPC
public import DriveBackupWire

/// A job's events until it ends, over lost connections and restarts of the agent, with none lost and none twice.
///
/// ```swift
/// for try await event in JobEvents(of: "vm1", at: address) { … }
/// ```
///
/// Where a connection is lost it connects anew and asks for what came after the last event it has seen; it throws
/// `unavailable` when that has failed for `patience`, and what the agent answers if it does not know the job any more.
public struct JobEvents: AsyncSequence, Sendable {
    public typealias Element = JobEvent
    public typealias Failure = RPCStatus

    let jobID: String
    let address: RPCAddress
    let sequence: UInt64
    let patience: Duration
    let onInterruption: @Sendable (RPCStatus) -> Void

    /// - Parameters:
    ///   - sequence: the last event that is known already; 0 for all that the agent still has.
    ///   - patience: how long an agent may be out of reach.
    ///   - onInterruption: called when a connection is lost and another is about to be tried.
    public init(
        of jobID: String, at address: RPCAddress, after sequence: UInt64 = 0,
        patience: Duration = .seconds(60),
        onInterruption: @escaping @Sendable (RPCStatus) -> Void = { _ in }
    ) {
        self.jobID = jobID
        self.address = address
        self.sequence = sequence
        self.patience = patience
        self.onInterruption = onInterruption
    }

    public func makeAsyncIterator() -> Iterator { Iterator(self) }

    public struct Iterator: AsyncIteratorProtocol {
        private let events: JobEvents
        private var sequence: UInt64
        private var client: DriveBackupClient?
        private var responses: RPCResponses<JobEvent>.AsyncIterator?
        private var hasEnded = false

        init(_ events: JobEvents) {
            self.events = events
            sequence = events.sequence
        }

        public mutating func next(isolation actor: isolated (any Actor)?) async throws(RPCStatus) -> JobEvent?
        {
            var outage = Outage(patience: events.patience)
            var connected = ContinuousClock.now
            while !hasEnded {
                do throws(RPCStatus) {
                    if responses == nil {
                        try await connect(isolation: actor)
                        connected = .now
                    }
                    guard let event = try await responses?.next(isolation: actor) else {
                        await end(isolation: actor)
                        return nil
                    }
                    // What a reconnected stream repeats is not told twice.
                    guard event.sequence > sequence || event.sequence == 0 else { continue }
                    sequence = event.sequence
                    return event
                } catch {
                    // What was there for a while is lost anew, with or without an event.
                    if responses != nil, ContinuousClock.now - connected > .seconds(1) {
                        outage = Outage(patience: events.patience)
                    }
                    await end(isolation: actor)
                    guard error.code == .unavailable, !Task.isCancelled, outage.goesOn() else { throw error }
                    if outage.isNew { events.onInterruption(error) }
                    // Cancelled while waiting: the next round ends at once.
                    try? await Task.sleep(for: outage.pause())
                    hasEnded = false
                }
            }
            return nil
        }

        private mutating func connect(isolation actor: isolated (any Actor)?) async throws(RPCStatus) {
            let client = try await DriveBackupClient.connect(to: events.address)
            self.client = client
            responses = try await client.jobs.watch(events.jobID, after: sequence).makeAsyncIterator()
        }

        private mutating func end(isolation actor: isolated (any Actor)?) async {
            hasEnded = true
            responses = nil
            await client?.close()
            client = nil
        }
    }
}

/// How long an agent has been out of reach, and when to try again.
private struct Outage {
    private let patience: Duration
    private var beginning: ContinuousClock.Instant?
    private var attempts = 0

    init(patience: Duration) { self.patience = patience }

    /// Whether only one attempt has failed.
    var isNew: Bool { attempts == 1 }

    /// Takes note of a failed attempt. False when there have been enough.
    mutating func goesOn() -> Bool {
        let now = ContinuousClock.now
        attempts += 1
        let start = beginning ?? now
        beginning = start
        return now - start < patience
    }

    /// How long to wait before the next attempt: from 0.1 to 2 seconds.
    func pause() -> Duration { min(.milliseconds(100) * (1 << min(attempts - 1, 5)), .seconds(2)) }
}
