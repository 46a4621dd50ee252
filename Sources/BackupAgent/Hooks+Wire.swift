internal import DriveBackupWire

extension Hooks {
    /// A job has ended: its hook, if it has one, is run with the job as `job show --json` prints it.
    package func ended(_ job: JobInfo) {
        guard let executable = executable(for: job.result) else { return }
        let wire = job.wire
        run(
            Call(
                jobID: wire.id, result: wire.result.jsonName, json: Array("\(wire.json())\n".utf8),
                executable: executable))
    }
}
