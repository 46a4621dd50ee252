import TestKit
import Testing

@testable import BackupAgent

/// Ways to bring a machine into each state.
func machine(in state: JobState) -> JobStateMachine {
    var machine = JobStateMachine(waitsForFinalize: true)
    let failure = JobFailure(error: AgentError(.ioError, "It failed."))
    func happens(_ events: JobStateMachine.Event...) { for event in events { _ = machine.handle(event) } }
    switch state {
    case .created: break
    case .running: happens(.started)
    case .paused:
        happens(.started)
        _ = try? machine.handle(.pause)
        happens(.quiescent)
    // A job alone in its group only passes through it: see below.
    case .waiting, .pending: happens(.started, .copied)
    case .aborting: happens(.started, .copyFailed(failure))
    case .concluded: happens(.started, .copyFailed(failure), .targetAbandoned)
    }
    return machine
}

@Suite("The states of a job")
struct JobStateMachineTests {
    /// QEMU's table of verbs (no `complete`), with cancel as section 0 of our semantics has it.
    static let allowed: [JobState: Set<JobVerb>] = [
        .created: [.cancel, .pause, .setSpeed],
        .running: [.cancel, .pause, .setSpeed],
        .paused: [.cancel, .resume, .setSpeed],
        .pending: [.cancel, .finalize],
        .aborting: [.cancel],
        .concluded: [.dismiss],
    ]

    @Test("a job that an error has paused, or is about to pause, is so after a restart")
    func resumingPausedByError() throws {
        let error = JobIOError(side: .target, operation: .write, range: nil, errno: 28, message: "No space.")
        var before = machine(in: .running)
        _ = before.handle(.copyHalted(error))
        // What is in flight has not ended yet.
        #expect(before.state == .running && before.phase == .paused(.error))
        _ = before.handle(.quiescent)
        let phase = try #require(before.phase)
        var after = JobStateMachine(
            resuming: phase, pauseError: before.pauseError, waitsForFinalize: false, drains: false,
            isGrouped: false)
        #expect(after.state == .paused && after.pauseReason == .error && after.pauseError == error)
        #expect(after.phase == phase)
        #expect(throws: JobStateMachine.Refusal.alreadyPaused) { try after.handle(.pause) }
        #expect(try after.handle(.resume).first == .resumeCopy)
        #expect(after.state == .running && after.pauseError == nil && after.phase == .running)
    }

    @Test(
        "each verb is accepted in the states of the table and refused in the others",
        arguments: JobVerb.allCases)
    func table(verb: JobVerb) {
        for (state, verbs) in Self.allowed {
            var job = machine(in: state)
            #expect(job.state == state)
            let before = job
            do throws(JobStateMachine.Refusal) {
                _ = try job.handle(verb)
                #expect(verbs.contains(verb), "\(verb) in \(state)")
            } catch {
                #expect(!verbs.contains(verb), "\(verb) in \(state)")
                #expect(job == before, "a refusal changes nothing")
                switch (verb, state) {
                case (.pause, .paused): #expect(error == .alreadyPaused)
                case (.resume, _): #expect(error == .notPaused)
                default: #expect(error == .wrongState(state, verb))
                }
            }
        }
    }

    @Test("a job that nobody touches goes from created to concluded")
    func plainLife() {
        var job = JobStateMachine(waitsForFinalize: false)
        #expect(job.handle(.started) == [.stateChanged(.running, previous: .created, pauseReason: nil)])
        #expect(
            job.handle(.copied) == [
                .stateChanged(.waiting, previous: .running, pauseReason: nil),
                .stateChanged(.pending, previous: .waiting, pauseReason: nil), .completeTarget,
            ])
        #expect(
            job.handle(.targetCompleted) == [
                .stateChanged(.concluded, previous: .pending, pauseReason: nil), .ended(.completed),
            ])
        #expect(job.result == .completed)
    }

    @Test("a job that waits for finalize stops in pending until it comes")
    func manualFinalize() throws {
        var job = machine(in: .pending)
        #expect(try job.handle(.finalize) == [.completeTarget])
        #expect(throws: JobStateMachine.Refusal.alreadyFinalizing) { try job.handle(.finalize) }
        _ = job.handle(.targetCompleted)
        #expect(job.result == .completed)
    }

    @Test("a job is paused when nothing is in flight any more, not before")
    func pausing() throws {
        var job = machine(in: .running)
        #expect(try job.handle(.pause) == [.pauseCopy])
        #expect(job.state == .running)
        #expect(throws: JobStateMachine.Refusal.alreadyPaused) { try job.handle(.pause) }
        #expect(
            job.handle(.quiescent) == [.stateChanged(.paused, previous: .running, pauseReason: .user)])
        #expect(job.pauseReason == .user)
        #expect(
            try job.handle(.resume) == [
                .resumeCopy, .stateChanged(.running, previous: .paused, pauseReason: nil),
            ])
        #expect(throws: JobStateMachine.Refusal.notPaused) { try job.handle(.resume) }
    }

    @Test("a pause that was taken back is not reported")
    func pauseTakenBack() throws {
        var job = machine(in: .running)
        _ = try job.handle(.pause)
        #expect(try job.handle(.resume) == [.resumeCopy])
        #expect(job.handle(.quiescent) == [])
        #expect(job.state == .running)
    }

    @Test("a job that is paused before it starts copies nothing")
    func pausedBeforeStart() throws {
        var job = machine(in: .created)
        #expect(try job.handle(.pause) == [])
        #expect(
            job.handle(.started) == [
                .stateChanged(.running, previous: .created, pauseReason: nil), .pauseCopy,
            ])
    }

    @Test("a cancel in pending ends as cancelled, though everything was copied")
    func cancelInPending() throws {
        var job = machine(in: .pending)
        #expect(
            try job.handle(.cancel) == [
                .stateChanged(.aborting, previous: .pending, pauseReason: nil), .abandonTarget,
            ])
        _ = job.handle(.targetAbandoned)
        #expect(job.result == .cancelled)
    }

    @Test("a cancel that comes after the target has its name ends as completed")
    func cancelTooLate() throws {
        var job = machine(in: .pending)
        _ = try job.handle(.finalize)
        _ = try job.handle(.cancel)
        #expect(
            job.handle(.targetCompleted) == [
                .stateChanged(.concluded, previous: .aborting, pauseReason: nil), .ended(.completed),
            ])
    }

    @Test("a target is given up once, and only after the copy has stopped")
    func abandonOnce() throws {
        var job = machine(in: .running)
        #expect(
            try job.handle(.cancel) == [
                .stateChanged(.aborting, previous: .running, pauseReason: nil), .stopCopy,
            ])
        #expect(try job.handle(.cancel) == [], "a second cancel repeats the answer")
        #expect(job.handle(.copyStopped) == [.abandonTarget])
        #expect(job.handle(.copyStopped).contains(.abandonTarget) == false || job.state == .aborting)
        _ = job.handle(.targetAbandoned)
        #expect(job.result == .cancelled)
    }

    @Test("a failure names itself, gives the target up, and ends as failed")
    func failure() {
        var job = machine(in: .running)
        let ioError = JobIOError(
            side: .target, operation: .write, range: nil, errno: 28, message: "No space.")
        let failure = JobFailure(error: AgentError(.noSpace, "No space."), ioError: ioError)
        #expect(
            job.handle(.copyFailed(failure)) == [
                .ioError(ioError), .stateChanged(.aborting, previous: .running, pauseReason: nil),
                .abandonTarget,
            ])
        #expect(
            job.handle(.targetAbandoned) == [
                .stateChanged(.concluded, previous: .aborting, pauseReason: nil), .ended(.failed),
            ])
        #expect(job.failure == failure)
    }

    private func failure(_ side: JobIOError.Side) -> JobFailure {
        JobFailure(
            error: AgentError(.ioError, "It failed."),
            ioError: JobIOError(side: side, operation: .write, range: nil, errno: 5, message: "It failed."))
    }

    @Test(
        "a failure that a cancel comes before is told, and the job has been cancelled",
        arguments: [JobIOError.Side.source, .target])
    func failureAfterCancel(side: JobIOError.Side) throws {
        let failure = failure(side)
        var job = machine(in: .running)
        _ = try job.handle(.cancel)
        #expect(job.handle(.copyFailed(failure)) == failure.ioError.map { [.ioError($0), .abandonTarget] })
        #expect(
            job.handle(.targetAbandoned) == [
                .stateChanged(.concluded, previous: .aborting, pauseReason: nil), .ended(.cancelled),
            ])
        #expect(job.failure == nil)
    }

    @Test("a job that had lost its point in time when it was cancelled has failed")
    func lostBeforeCancel() throws {
        let failure = failure(.staging)
        var job = machine(in: .running)
        _ = try job.handle(.cancel)
        #expect(job.handle(.copyFailed(failure)) == failure.ioError.map { [.ioError($0), .abandonTarget] })
        _ = job.handle(.targetAbandoned)
        #expect(job.result == .failed && job.failure == failure)
    }

    @Test("of two reasons to fail the first is the job's, and an error is told whichever it is")
    func failureAfterStop() throws {
        let stop = JobFailure(error: AgentError(.agentStopping, "The agent stops."))
        let failure = failure(.staging)
        var job = machine(in: .running)
        _ = job.handle(.mustFail(stop))
        #expect(job.handle(.copyFailed(failure)) == failure.ioError.map { [.ioError($0), .abandonTarget] })
        _ = job.handle(.targetAbandoned)
        #expect(job.result == .failed && job.failure == stop)
    }

    @Test("a target that fails while it is being given up is told, and changes nothing else")
    func targetFailsAfterCancel() throws {
        let failure = failure(.target)
        var job = machine(in: .pending)
        _ = try job.handle(.finalize)
        _ = try job.handle(.cancel)
        #expect(job.handle(.targetFailed(failure)) == failure.ioError.map { [.ioError($0)] })
        _ = job.handle(.targetAbandoned)
        #expect(job.result == .cancelled)
    }

    // MARK: Jobs of sync none

    private func draining() throws -> JobStateMachine {
        var job = JobStateMachine(waitsForFinalize: false, drains: true)
        _ = job.handle(.started)
        #expect(
            try job.handle(.cancel) == [
                .stateChanged(.aborting, previous: .running, pauseReason: nil), .finishCopy,
            ])
        return job
    }

    @Test(
        "a job of sync none that is cancelled copies what was saved, completes its target, and has completed")
    func drain() throws {
        var job = try draining()
        #expect(job.handle(.copied) == [.completeTarget])
        #expect(
            job.handle(.targetCompleted) == [
                .stateChanged(.concluded, previous: .aborting, pauseReason: nil), .ended(.completed),
            ])
    }

    @Test("a second cancel gives a job of sync none up, whether it still copies or completes its target")
    func drainCancelled() throws {
        var copying = try draining()
        #expect(try copying.handle(.cancel) == [.stopCopy])
        #expect(try copying.handle(.cancel) == [], "a third repeats the answer")
        #expect(copying.handle(.copyStopped) == [.abandonTarget])
        _ = copying.handle(.targetAbandoned)
        #expect(copying.result == .cancelled)
        var completing = try draining()
        _ = completing.handle(.copied)
        #expect(try completing.handle(.cancel, isForced: true) == [.abandonTarget])
        #expect(completing.handle(.targetFailed(JobFailure(error: AgentError(.ioError, "Given up.")))) == [])
        _ = completing.handle(.targetAbandoned)
        #expect(completing.result == .cancelled)
    }

    @Test("a forced cancel gives a job of sync none up at once; a copy that ends just then changes nothing")
    func drainForced() throws {
        var job = JobStateMachine(waitsForFinalize: false, drains: true)
        _ = job.handle(.started)
        #expect(
            try job.handle(.cancel, isForced: true) == [
                .stateChanged(.aborting, previous: .running, pauseReason: nil), .stopCopy,
            ])
        #expect(job.handle(.copied) == [.abandonTarget])
        _ = job.handle(.targetAbandoned)
        #expect(job.result == .cancelled)
    }

    @Test("a paused job of sync none goes on when it is cancelled: a paused job drains nothing")
    func drainPaused() throws {
        var job = JobStateMachine(waitsForFinalize: false, drains: true)
        _ = job.handle(.started)
        _ = try job.handle(.pause)
        _ = job.handle(.quiescent)
        #expect(
            try job.handle(.cancel) == [
                .resumeCopy, .stateChanged(.aborting, previous: .paused, pauseReason: nil), .finishCopy,
            ])
        #expect(job.handle(.quiescent) == [])
    }

    @Test("a job of sync none that fails while it drains, or whose target does, has failed")
    func drainFails() throws {
        let ioError = JobIOError(
            side: .staging, operation: .write, range: nil, errno: 5, message: "It failed.")
        let failure = JobFailure(error: AgentError(.snapshotBroken, "It failed."), ioError: ioError)
        for event in [JobStateMachine.Event.copyFailed(failure), .targetFailed(failure)] {
            var job = try draining()
            if case .targetFailed = event { _ = job.handle(.copied) }
            #expect(job.handle(event) == [.ioError(ioError), .abandonTarget])
            #expect(try job.handle(.cancel) == [])
            _ = job.handle(.targetAbandoned)
            #expect(job.result == .failed && job.failure == failure)
        }
        var stopped = try draining()
        #expect(stopped.handle(.mustFail(failure)) == [.stopCopy])
        #expect(stopped.handle(.copyStopped) == [.abandonTarget])
        _ = stopped.handle(.targetAbandoned)
        #expect(stopped.result == .failed)
    }

    @Test("a job of sync none that has not started is cancelled like any other")
    func drainBeforeStart() throws {
        var job = JobStateMachine(waitsForFinalize: false, drains: true)
        #expect(
            try job.handle(.cancel) == [
                .stateChanged(.aborting, previous: .created, pauseReason: nil), .stopCopy,
            ])
    }

    @Test("random events and verbs lead to exactly one end, and to none without its cause")
    func randomLives() throws {
        let seed = testSeed()
        var random = SeededGenerator(seed)
        let failure = JobFailure(error: AgentError(.ioError, "It failed."))
        for _ in 0..<5000 {
            var job = JobStateMachine(waitsForFinalize: random.oneIn(2), drains: random.oneIn(2))
            var (ends, abandons, completes) = (0, 0, 0)
            var copies = true
            for _ in 0..<40 {
                // Only what can happen: a copy ends once, a target is completed or abandoned when it was told
                // to.
                var events: [JobStateMachine.Event] = [.quiescent]
                if job.state == .created { events.append(.started) }
                if copies, job.state != .created { events += [.copied, .copyFailed(failure), .incomplete] }
                // Late ones, too: they are on their way while the job ends.
                if job.state != .created { events.append(.copyHalted(Self.writeError)) }
                if copies, job.state == .aborting { events.append(.copyStopped) }
                if completes == 1, abandons == 0 { events += [.targetCompleted, .targetFailed(failure)] }
                if abandons == 1 { events.append(.targetAbandoned) }
                if random.oneIn(20) { events.append(.mustFail(failure)) }
                let wasEnded = ends > 0
                let before = job
                let effects: [JobStateMachine.Effect]
                if random.oneIn(3), let verb = JobVerb.allCases.randomElement(using: &random) {
                    do throws(JobStateMachine.Refusal) {
                        effects = try job.handle(verb, isForced: random.oneIn(4))
                        // A pause may have been asked for and not reached, a finalize be under way.
                        let verbs = Self.allowed[before.state, default: []].union(
                            before.state == .created || before.state == .running ? [.resume] : [])
                        #expect(verbs.contains(verb), "\(verb) in \(before.state), seed \(seed)")
                    } catch {
                        #expect(job == before, "a refusal changes nothing, seed \(seed)")
                        effects = []
                    }
                } else if let event = events.randomElement(using: &random) {
                    switch event {
                    case .copied, .copyFailed, .copyStopped: copies = false
                    case .targetFailed: completes = 2
                    default: break
                    }
                    effects = job.handle(event)
                } else {
                    continue
                }
                for effect in effects {
                    switch effect {
                    case .ended: ends += 1
                    case .abandonTarget: abandons += 1
                    case .completeTarget: completes += 1
                    default: break
                    }
                }
                #expect(!wasEnded || effects.allSatisfy { $0 == .dismissed }, "nothing follows the end")
                #expect(abandons <= 1 && ends <= 1, "seed \(seed)")
                #expect((job.result != nil) == (job.state == .concluded))
                #expect((job.pauseReason != nil) == (job.state == .paused))
                if job.pauseReason == .error { #expect(job.pauseError != nil) }
                // Whatever the way, the states follow each other in one of theirs.
                var state = before.state
                for case .stateChanged(let new, let previous, let reason, let error) in effects {
                    #expect(previous == state && (reason == .error) == (error != nil), "seed \(seed)")
                    state = new
                }
                #expect(state == job.state)
            }
        }
    }
}
