import Testing

@testable import BackupAgent

/// Errors that pause a job, and what goes on without what is missing.
extension JobStateMachineTests {
    static let writeError = JobIOError(
        side: .target, operation: .write, range: nil, errno: 28, message: "No space.", action: .stop)
    static let readError = JobIOError(
        side: .source, operation: .read, range: nil, errno: 5, message: "It failed.", action: .stop)

    @Test("an error that halts the copy pauses the job once nothing is in flight, and is the reason")
    func pausedByError() throws {
        var job = machine(in: .running)
        #expect(job.handle(.copyHalted(Self.writeError)) == [.pauseCopy])
        #expect(job.state == .running && job.pauseReason == nil)
        #expect(job.handle(.copyHalted(Self.readError)) == [], "the first is the reason")
        #expect(throws: JobStateMachine.Refusal.alreadyPaused) { try job.handle(.pause) }
        #expect(
            job.handle(.quiescent) == [
                .stateChanged(.paused, previous: .running, pauseReason: .error, pauseError: Self.writeError)
            ])
        #expect(job.pauseReason == .error && job.pauseError == Self.writeError)
        #expect(throws: JobStateMachine.Refusal.alreadyPaused) { try job.handle(.pause) }
        #expect(throws: JobStateMachine.Refusal.wrongState(.paused, .finalize)) { try job.handle(.finalize) }
        #expect(try job.handle(.setSpeed) == [])
        #expect(
            try job.handle(.resume) == [
                .resumeCopy, .stateChanged(.running, previous: .paused, pauseReason: nil),
            ])
        #expect(job.pauseError == nil)
        // The fault is still there.
        #expect(job.handle(.copyHalted(Self.readError)) == [.pauseCopy])
        _ = job.handle(.quiescent)
        #expect(job.pauseError == Self.readError)
    }

    @Test(
        "a resume takes back a user's pause and an error's alike; what is heard of too late changes nothing")
    func errorAndUser() throws {
        var job = machine(in: .paused)
        #expect(
            job.handle(.copyHalted(Self.writeError)) == [
                .stateChanged(.paused, previous: .paused, pauseReason: .error, pauseError: Self.writeError)
            ])
        _ = try job.handle(.resume)
        #expect(job.state == .running && job.pauseError == nil)
        _ = try job.handle(.pause)
        #expect(job.handle(.copyHalted(Self.writeError)) == [.pauseCopy])
        #expect(try job.handle(.resume) == [.resumeCopy], "before it has come to rest")
        #expect(job.handle(.quiescent) == [])
        for state in [JobState.created, .pending, .aborting, .concluded] {
            var job = machine(in: state)
            let before = job
            #expect(job.handle(.copyHalted(Self.writeError)) == [] && job == before)
        }
    }

    @Test("a job that an error has paused can be cancelled; of sync none it drains then")
    func cancelledWhilePausedByError() throws {
        for drains in [false, true] {
            var job = JobStateMachine(waitsForFinalize: false, drains: drains)
            _ = job.handle(.started)
            _ = job.handle(.copyHalted(Self.writeError))
            _ = job.handle(.quiescent)
            let effects = try job.handle(.cancel)
            let change = JobStateMachine.Effect.stateChanged(.aborting, previous: .paused, pauseReason: nil)
            #expect(effects == (drains ? [.resumeCopy, change, .finishCopy] : [change, .stopCopy]))
            #expect(job.pauseReason == nil && job.pauseError == nil)
        }
    }

    @Test("a job whose target lacks something has completed with errors")
    func completedWithErrors() {
        var job = machine(in: .running)
        #expect(job.handle(.incomplete) == [])
        _ = job.handle(.copied)
        _ = try? job.handle(.finalize)
        _ = job.handle(.targetCompleted)
        #expect(job.result == .completedWithErrors)
    }
}
