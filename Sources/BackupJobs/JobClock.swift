/// The time by which a job paces itself; a parameter, so that tests can make it theirs.
package struct JobClock: Sendable {
    /// The time since some fixed moment; never goes back.
    package var now: @Sendable () -> Duration
    /// Returns when that much time has passed, or throws when the task is cancelled.
    package var sleep: @Sendable (Duration) async throws -> Void

    package init(
        now: @escaping @Sendable () -> Duration,
        sleep: @escaping @Sendable (Duration) async throws -> Void
    ) {
        self.now = now
        self.sleep = sleep
    }

    /// The system's clock, which stands still while the host sleeps.
    package static let system: JobClock = {
        let start = SuspendingClock.now
        return JobClock(
            now: { start.duration(to: SuspendingClock.now) },
            sleep: { duration in try await Task.sleep(for: duration, clock: SuspendingClock()) })
    }()
}
