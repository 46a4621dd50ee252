internal import BackupJobs
internal import Logging

// What the next agent has to know of the jobs that run is written whenever it changes, by one task after another, each with
// all that has changed until then: so what happened to several jobs in one step is kept as one.

extension JobManager {
    /// Jobs that have changed since they were kept.
    struct Saving {
        var changed: Set<JobNumber> = []
        var task: Task<Void, Never>?
    }

    /// Has the job kept as it is, or forgotten when it has ended, soon.
    func save(_ number: JobNumber) {
        guard store != nil else { return }
        saving.changed.insert(number)
        guard saving.task == nil else { return }
        saving.task = Task { await self.saveAll() }
    }

    /// Returns when all that has changed so far is kept, or `limit` is over.
    func saved(atMost limit: Duration) async {
        guard let task = saving.task else { return }
        let done = OneShot<Void>()
        // Ends with what it waits for, which is the manager's.
        Task {
            await task.value
            done.fulfil(())
        }
        _ = await done.wait(atMost: limit)
    }

    private func saveAll() async {
        while !saving.changed.isEmpty {
            let numbers = saving.changed.sorted()
            saving.changed = []
            var (kept, gone, over): ([StoredJob], [JobNumber], [JobNumber]) = ([], [], [])
            for number in numbers {
                guard let record = records[number], record.machine.phase != nil else {
                    if history != nil, ended[number] != nil {
                        over.append(number)
                    } else {
                        gone.append(number)
                    }
                    continue
                }
                // Before that it is the start that keeps it.
                if record.started != nil, let job = stored(record) { kept.append(job) }
            }
            // Over a power cut a job is known by its start, and completes by its decision; how far it was in between says
            // nothing then, and whoever waits for a decision is not to wait for that.
            do throws(AgentError) { try await store?.keepRelaxed(kept, forgetting: gone, ended: over) } catch
            {
                // The job goes on; what the next agent would know of it is a little old.
                logger.error("\(error.message)")
            }
        }
        saving.task = nil
    }

    /// What the next agent has to know; nil of a job that has ended.
    func stored(_ record: Record) -> StoredJob? {
        guard let phase = record.machine.phase, let known = record.known, let format = record.info.format
        else { return nil }
        // A job alone may be given up until its target has its name.
        let isDecided = record.isDecided && (record.spec.isGrouped || phase == .finalizing)
        return StoredJob(
            number: record.number.value, spec: record.spec, access: record.access, group: record.info.group,
            target: record.info.target, format: format, sync: record.info.sync, resumption: known.target,
            drive: known.drive, pointInTime: record.info.pointInTime, createdAt: record.info.createdAt,
            speedBytesPerSecond: record.info.speedBytesPerSecond, restarts: record.info.restarts,
            started: record.started.map { StoredJob.Started(sequence: $0.sequence, time: $0.time) },
            phase: isDecided ? .decided : phase, pauseError: record.machine.pauseError,
            errorCount: record.errors.count > 0 ? record.errors.count : nil,
            errors: record.errors.count > 0 ? record.errors.last : nil,
            missing: record.info.missing.length > 0 ? record.info.missing : nil,
            isCloned: record.info.isCloned ? true : nil,
            manifest: record.info.manifest.isEmpty ? nil : record.info.manifest)
    }
}
