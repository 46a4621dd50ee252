internal import DriveBackupClient

/// Stays with the jobs of a group until all have ended: shows their events, goes on over a lost connection, and leaves at
/// Ctrl-C.
struct GroupWatch {
    /// How long an agent that is being restarted may be out of reach.
    private static let patience = Duration.seconds(30)

    private enum Outcome: Sendable {
        case ended(Result<Void, CommandFailure>)
        case signal(ExitStatus)
    }

    let session: Session
    let client: DriveBackupClient
    /// The ids that the jobs will have.
    let ids: [String]

    /// Reports what `open` streams, and what follows should the stream break off. Returns the worst result as an exit status.
    func run(
        detach: Bool, open: @escaping @Sendable () async throws(RPCStatus) -> RPCResponses<JobEvent>
    ) async throws(CommandFailure) -> ExitStatus {
        let reporters = Dictionary(uniqueKeysWithValues: Set(ids).map { ($0, reporter($0)) })
        let outcome = await withTaskGroup(of: Outcome?.self) { group in
            group.addTask { await .ended(follow(reporters, detach: detach, open: open)) }
            group.addTask { await Signals.ending {}.map { .signal($0) } }
            group.addTask { await tick(reporters) }
            var outcome: Outcome?
            while outcome == nil, let next = await group.next() { outcome = next }
            group.cancelAll()
            return outcome
        }
        var stories: [JobStory] = []
        for id in ids {
            guard let reporter = reporters[id] else { continue }
            await reporter.conclude()
            stories.append(await reporter.story)
        }
        await client.close()
        switch outcome {
        case .signal(let status): throw CommandFailure(status, farewell(stories))
        case .ended(.failure(let failure)): throw failure
        case .ended(.success), nil: return detach ? .done : try result(of: stories)
        }
    }

    /// The worst of the jobs' results; each failed job is named.
    private func result(of stories: [JobStory]) throws(CommandFailure) -> ExitStatus {
        let failures = stories.filter { $0.exitStatus == .failed }.map { story in
            story.ending
                ?? "the agent's report of \(story.id) broke off; '\(session.prefix) job show \(story.id)' tells more"
        }
        guard failures.isEmpty else { throw CommandFailure(.failed, failures.joined(separator: "; ")) }
        let results = stories.map(\.exitStatus)
        return [.cancelled, .incomplete].first(where: results.contains) ?? .done
    }

    private func reporter(_ id: String) -> JobReporter {
        let beginning = ContinuousClock.now
        return JobReporter(
            session.json ? .json : .lines, console: session.console, stream: .error, story: JobStory(id: id)
        ) { ContinuousClock.now - beginning }
    }

    private func follow(
        _ reporters: [String: JobReporter], detach: Bool,
        open: () async throws(RPCStatus) -> RPCResponses<JobEvent>
    ) async -> Result<Void, CommandFailure> {
        var started: Set<String> = []
        do throws(RPCStatus) {
            for try await event in try await open() {
                if case .started = event.event {
                    started.insert(event.jobID)
                    if !session.json { session.console.print(ColumnText.printable(event.jobID)) }
                }
                await reporters[event.jobID]?.handle(event)
                if detach && started.count == reporters.count { return .success(()) }
            }
            return .success(())
        } catch {
            guard started.count == reporters.count, !detach, error.code == .unavailable, !Task.isCancelled
            else { return .failure(refusal(error, hasStarted: started.count == reporters.count)) }
            let line = "lost the agent, trying again: \(error.message)"
            if !session.json { session.console.print(line, to: .error) }
            return await goOn(reporters)
        }
    }

    /// Takes each job's events up again after the last that was seen.
    private func goOn(_ reporters: [String: JobReporter]) async -> Result<Void, CommandFailure> {
        await withTaskGroup(of: Result<Void, CommandFailure>.self) { group in
            for (id, reporter) in reporters { group.addTask { await goOn(id, reporter) } }
            var result = Result<Void, CommandFailure>.success(())
            for await one in group { if case .failure = one { result = one } }
            return result
        }
    }

    private func goOn(_ id: String, _ reporter: JobReporter) async -> Result<Void, CommandFailure> {
        guard await !reporter.isOver else { return .success(()) }
        let events = JobEvents(
            of: id, at: client.address, after: await reporter.story.lastSequence, patience: Self.patience)
        do throws(RPCStatus) {
            for try await event in events {
                await reporter.handle(event)
                if await reporter.isOver { break }
            }
            return .success(())
        } catch {
            let hint = "'\(session.prefix) job watch \(id)' goes on when it is back"
            let failure = CommandFailure("lost sight of \(id)", error)
            return .failure(CommandFailure(failure.status, failure.message.continued(by: hint)))
        }
    }

    private func refusal(_ error: RPCStatus, hasStarted: Bool) -> CommandFailure {
        let failure = CommandFailure("couldn't start the backups of \(ids.joined(separator: ", "))", error)
        guard !hasStarted, error.code == .unavailable else { return failure }
        // The request may have arrived, or not.
        let hint = "'\(session.prefix) job list' tells whether they were started"
        return CommandFailure(failure.status, failure.message.continued(by: hint))
    }

    private func tick(_ reporters: [String: JobReporter]) async -> Outcome? {
        while !Task.isCancelled {
            // Cancelled is the only way this ends early, and the loop sees it.
            try? await Task.sleep(for: .seconds(1))
            for reporter in reporters.values { await reporter.tick() }
        }
        return nil
    }

    private func farewell(_ stories: [JobStory]) -> String {
        let running = stories.filter { $0.startedAt > 0 && $0.end == nil }.map(\.id)
        guard !running.isEmpty else {
            return
                "interrupted before the backups were started; '\(session.prefix) job list' tells whether they are"
        }
        let names = running.joined(separator: ", ")
        let (verb, job) = (running.count == 1 ? "goes" : "go", "\(session.prefix) job")
        return "\(names) \(verb) on; '\(job) list' shows them, '\(job) watch ID' follows one, "
            + "'\(job) cancel ID' ends one"
    }
}
