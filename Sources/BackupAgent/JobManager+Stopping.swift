internal import BackupJobs
internal import Logging

// The agent's end in order. Jobs that run are suspended: they go on in the next agent from what a killed one would have
// left, too. One that is being completed or given up gets the time that there is.

extension JobManager {
    /// Suspends all jobs and waits until nothing of them runs any more, but no longer than `limit`. No job starts
    /// afterwards; one that is being started is refused. Guests may still write, and what they overwrite is saved.
    package func stop(within limit: Duration) async {
        isStopping = true
        let refusal = AgentError(.agentStopping, "The agent was stopped before the job had started")
        let reason = AgentError(.agentStopping, "The agent was stopped before the job had ended")
        var waiting: [Task<Void, Never>] = []
        for number in records.keys.sorted() {
            guard let record = records[number] else { continue }
            if record.started == nil {
                records[number]?.startRefusal = refusal
                report(.mustFail(JobFailure(error: refusal)), number)
            } else if !record.goesOn {
                report(.mustFail(noting(JobFailure(error: reason), number)), number)
            } else {
                record.control.suspend()
                // A target that is still busy is waited for no more.
                if record.target is ReopeningTarget { record.stop.fulfil(()) }
            }
            waiting += record.tasks
        }
        waiting += removals.values
        let done = OneShot<Void>()
        let tasks = waiting
        let waiter = Task {
            for task in tasks { await task.value }
            // What they set off comes later.
            for task in self.remainingTasks() { await task.value }
            done.fulfil(())
        }
        _ = await done.wait(atMost: limit)
        waiter.cancel()
    }

    private func remainingTasks() -> [Task<Void, Never>] { records.values.flatMap(\.tasks) + removals.values }

    /// Lets drives and targets be closed in the midst of jobs. After `stop`, when no export is left.
    package func leave() async {
        isLeaving = true
        await saved(atMost: .milliseconds(500))
        let left = records.values.filter { $0.started != nil && $0.goesOn && $0.machine.phase != nil }
        await withTaskGroup(of: Void.self) { group in
            for record in left { group.addTask { await self.leave(record) } }
        }
    }

    /// Whether nothing uses the job's files any more, within the time that there is.
    private func hasEnded(_ job: BackupJob) async -> Bool {
        let hasEnded = OneShot<Void>()
        // What hangs ends with the process.
        Task {
            await job.ended()
            hasEnded.fulfil(())
        }
        return await hasEnded.wait(atMost: .milliseconds(500)) != nil
    }

    private func leave(_ record: Record) async {
        logger.notice("The job \(record.spec.jobID) is suspended; it goes on when the agent is started again")
        // One with requests on their way is left as a killed agent would leave it.
        if let hold = record.hold, let job = hold.job, await job.suspend(), await hasEnded(job) {
            // The next agent opens it anew; an error here is one of closing a file that keeps what it has.
            try? await hold.staging.close()
            try? await hold.sums.close()  // as above
            await drives.giveBack(hold.lease)
        }
        let hasLeft = OneShot<Void>()
        // What hangs in it ends with the process.
        Task {
            await record.target?.leave()
            hasLeft.fulfil(())
        }
        _ = await hasLeft.wait(atMost: .milliseconds(500))
    }
}
