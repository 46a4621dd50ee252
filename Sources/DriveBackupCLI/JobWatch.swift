internal import DriveBackupClient

/// Stays with a job until it ends: shows its events, goes on over a lost connection, and leaves at Ctrl-C.
struct JobWatch {
    /// How long an agent that is being restarted may be out of reach.
    private static let patience = Duration.seconds(30)

    private enum Outcome: Sendable {
        case ended(Result<Void, CommandFailure>)
        case signal(ExitStatus)
    }

    let session: Session
    let client: DriveBackupClient
    /// Whether the job is started here: its id is printed first, and standard output has nothing else for people.
    let isStart: Bool

    /// Reports what `open` streams, and what follows should the stream break off.
    ///
    /// - Parameters:
    ///   - story: what is known of the job.
    ///   - introduce: begin with what `story` tells.
    ///   - detach: return after `started`.
    ///   - what: what failed if `open` is refused.
    /// - Returns: the job's result as an exit status.
    func run(
        _ story: JobStory, introduce: Bool = false, detach: Bool = false, what: String,
        open: @escaping @Sendable () async throws(RPCStatus) -> RPCResponses<JobEvent>
    ) async throws(CommandFailure) -> ExitStatus {
        let reporter = reporter(story)
        if introduce { await reporter.introduce() }
        let outcome = await withTaskGroup(of: Outcome?.self) { group in
            group.addTask { await .ended(follow(reporter, detach: detach, what: what, open: open)) }
            group.addTask {
                await Signals.ending { await reporter.resized() }.map { .signal($0) }
            }
            group.addTask { await tick(reporter) }
            var outcome: Outcome?
            while outcome == nil, let next = await group.next() { outcome = next }
            group.cancelAll()
            return outcome
        }
        await reporter.conclude()
        var end = await reporter.story
        // A watch from behind the last event sees none of them: the job itself knows how it ended. What
        // cannot be asked any more is told as broken off.
        if end.end == nil, !detach, case .ended(.success)? = outcome,
            let job = try? await client.jobs.get(end.id)  // see above
        {
            end = JobStory(job)
        }
        await client.close()
        switch outcome {
        case .signal(let status): throw CommandFailure(status, farewell(end))
        case .ended(.failure(let failure)): throw failure
        case .ended(.success), nil: return detach ? .done : try result(of: end)
        }
    }

    /// Tells the end of a job that has ended already.
    func tell(_ story: JobStory) async throws(CommandFailure) -> ExitStatus {
        await reporter(story).conclude()
        await client.close()
        return try result(of: story)
    }

    private func result(of story: JobStory) throws(CommandFailure) -> ExitStatus {
        switch story.end {
        case nil:
            let hint = "'\(session.prefix) job show \(story.id)' tells more"
            throw CommandFailure(.failed, "the agent's report of \(story.id) broke off; \(hint)")
        case .failed:
            throw CommandFailure(.failed, story.ending ?? "")
        case .completed, .cancelled:
            return story.exitStatus
        }
    }

    private func reporter(_ story: JobStory) -> JobReporter {
        let surroundings = session.surroundings
        let style: JobReporter.Style =
            if session.json {
                .json
            } else if surroundings.canRedraw {
                .bar(width: terminalWidth, unicode: surroundings.isUTF8)
            } else {
                .lines
            }
        let beginning = ContinuousClock.now
        return JobReporter(style, console: session.console, stream: isStart ? .error : .output, story: story)
        {
            ContinuousClock.now - beginning
        }
    }

    private func follow(
        _ reporter: JobReporter, detach: Bool, what: String,
        open: () async throws(RPCStatus) -> RPCResponses<JobEvent>
    ) async -> Result<Void, CommandFailure> {
        var hasStarted = !isStart
        do throws(RPCStatus) {
            for try await event in try await open() {
                if !hasStarted, await begin(event, reporter) { hasStarted = true }
                await reporter.handle(event)
                if detach && hasStarted { return .success(()) }
                if await reporter.isOver { return .success(()) }
            }
            return .success(())
        } catch {
            guard hasStarted, !detach, error.code == .unavailable, !Task.isCancelled else {
                return .failure(refusal(what, error, hasStarted: hasStarted))
            }
            await interrupted(reporter, error)
            return await goOn(reporter)
        }
    }

    /// Prints the id of the job that has been started. False if `event` does not say so.
    private func begin(_ event: JobEvent, _ reporter: JobReporter) async -> Bool {
        guard case .started = event.event else { return false }
        if !event.jobID.isEmpty { await reporter.rename(event.jobID) }
        let id = await reporter.story.id
        if !session.json { session.console.print(ColumnText.printable(id)) }
        return true
    }

    /// Takes the job's events up again after the last that was seen.
    private func goOn(_ reporter: JobReporter) async -> Result<Void, CommandFailure> {
        let story = await reporter.story
        let events = JobEvents(
            of: story.id, at: client.address, after: story.lastSequence, patience: Self.patience)
        do throws(RPCStatus) {
            for try await event in events {
                await reporter.handle(event)
                if await reporter.isOver { break }
            }
            return .success(())
        } catch {
            let last = await reporter.story.lastSequence
            let hint = "'\(session.prefix) job watch \(story.id) --after \(last)' goes on when it is back"
            let failure = CommandFailure("lost sight of \(story.id)", error)
            guard error.code == .unavailable else { return .failure(failure) }
            return .failure(CommandFailure(failure.status, failure.message.continued(by: hint)))
        }
    }

    private func interrupted(_ reporter: JobReporter, _ error: RPCStatus) async {
        await reporter.remark("lost the agent, trying again: \(error.message)")
    }

    private func refusal(_ what: String, _ error: RPCStatus, hasStarted: Bool) -> CommandFailure {
        let failure = CommandFailure(what, error)
        guard isStart, !hasStarted, error.code == .unavailable else { return failure }
        // The request may have arrived, or not.
        let hint = "'\(session.prefix) job list' tells whether it was started"
        return CommandFailure(failure.status, failure.message.continued(by: hint))
    }

    private func tick(_ reporter: JobReporter) async -> Outcome? {
        while !Task.isCancelled {
            // Cancelled is the only way this ends early, and the loop sees it.
            try? await Task.sleep(for: .seconds(1))
            await reporter.tick()
        }
        return nil
    }

    private func farewell(_ story: JobStory) -> String {
        guard !isStart || story.startedAt > 0 else {
            return
                "interrupted before the backup was started; '\(session.prefix) job list' tells whether it is"
        }
        let job = "\(session.prefix) job"
        return "\(story.id) goes on; '\(job) watch \(story.id)' shows it, '\(job) cancel \(story.id)' ends it"
    }
}

extension String {
    /// The sentence with another behind it.
    func continued(by hint: String) -> String {
        hasSuffix(".") ? "\(dropLast()); \(hint)" : hasSuffix("?") ? "\(self) \(hint)" : "\(self); \(hint)"
    }
}
