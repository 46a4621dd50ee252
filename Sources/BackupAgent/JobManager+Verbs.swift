internal import BackupJobs

// What people do to jobs: decided by the job's state machine, in one step.

extension JobManager {
    /// How long an answer waits until the next agent would know of it, too.
    private static var patience: Duration { .milliseconds(500) }

    /// Does what is asked for, or refuses and changes nothing. Returns what the job is then. `isForced` is about cancel: a
    /// job that could end well by it is given up, too.
    package func perform(
        _ verb: JobVerb, on id: String, isForced: Bool = false
    ) async throws(AgentError) -> JobInfo {
        guard let record = live(id) else {
            if last(id) == nil, try await kept(id) == nil { throw Self.notFound(id) }
            guard verb != .dismiss else {
                throw AgentError(
                    .jobState, "Couldn't dismiss the job \(id): it has ended and was dismissed already",
                    subject: id)
            }
            // It has ended and was dismissed: what it refuses is what a concluded job refuses.
            throw Self.refusal(.wrongState(.concluded, verb), id: id, verb)
        }
        let number = record.number
        do throws(JobStateMachine.Refusal) {
            guard let effects = try records[number]?.machine.handle(verb, isForced: isForced) else {
                throw .wrongState(.concluded, verb)
            }
            let before = current(record)
            carryOut(effects, number)
            if verb == .pause { await settle(record) }
            // What it is by the verb: others may have theirs while it is being kept.
            let after = records[number].map(current) ?? ended[number]?.info ?? before
            await saved(atMost: Self.patience)
            return after
        } catch {
            throw Self.refusal(error, id: id, verb)
        }
    }

    /// Changes a job's speed, in bytes a second; 0 is unlimited.
    package func setSpeed(_ speed: Int64, of id: String) async throws(AgentError) -> JobInfo {
        guard speed >= 0 else {
            throw AgentError(
                .fieldInvalid, "The speed \(speed) is negative (0 is unlimited)", subject: "speed")
        }
        let number = live(id)?.number
        let info = try await perform(.setSpeed, on: id)
        // Another job may have the id by now.
        guard let number, let record = records[number] else { return info }
        record.control.setSpeed(speed)
        records[number]?.info.speedBytesPerSecond = speed
        save(number)
        await saved(atMost: Self.patience)
        return records[number].map(current) ?? ended[number]?.info ?? info
    }

    /// Gives a job that was asked to pause a moment for what is in flight, so that the answer is usually
    /// "paused". A target that hangs makes nobody wait.
    private func settle(_ record: Record) async {
        let quiet = OneShot<Void>()
        let waiting = Task {
            if await record.control.quiescent() { quiet.fulfil(()) }
        }
        if await quiet.wait(atMost: .seconds(1)) != nil { report(.quiescent, record.number) }
        waiting.cancel()
    }

    private static func refusal(
        _ refusal: JobStateMachine.Refusal, id: String, _ verb: JobVerb
    ) -> AgentError {
        let why =
            switch refusal {
            case .wrongState(let state, let verb): "in the state \(state.word) a job refuses \(verb.rawValue)"
            case .alreadyPaused: "it is paused already"
            case .notPaused: "it was not paused"
            case .alreadyFinalizing: "it is being finalized already"
            }
        return AgentError(.jobState, "Couldn't \(verb.rawValue) the job \(id): \(why)", subject: id)
    }
}
