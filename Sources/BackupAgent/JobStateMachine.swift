// A job's life as a pure value: an event goes in, effects come out, nothing is awaited in between.
//
//   created ─► running ⇄ paused        running ─► waiting ─► pending ─► concluded
//   any of these ─► aborting ─► concluded
//
// The copy runs from `created` (accepted) until it reports its end; it is told to pause, resume or stop by
// effects. A job is `paused` only when the copy says that nothing is in flight any more, so a pause that was
// asked for and one that has been reached are different things; verbs look at the first, watchers see the
// second. An error whose policy is to pause the job does as a user does who asks for it; only the reason is another
// one, and `resume` takes back both. In `pending` the target is completed: at once, or when `finalize` arrives. A cancel during that is
// answered at once as well, and the target decides who was first: when its rename has happened already the
// job ends as completed, because it is.
//
// A job of sync mode `none` never ends by itself: its good end is a cancel. Then it drains, in `aborting`:
//
//   running, paused ─ cancel ─► aborting: copies what was saved ─► completes the target ─► concluded, completed
//                                  │ cancel again, or force
//                                  └─► gives the target up ─► concluded, cancelled

/// The rules of a job's states and verbs (the verb table of QEMU's jobs, with cancel allowed in every state
/// before `concluded`).
package struct JobStateMachine: Sendable, Hashable {
    package private(set) var state: JobState = .created
    /// Set exactly when the state is `concluded`.
    package private(set) var result: JobResult?
    package private(set) var pauseReason: PauseReason?
    /// The error that has halted the copy; set while the job is paused by it, or about to be.
    package private(set) var pauseError: JobIOError?
    /// Set when the job failed or is about to.
    package private(set) var failure: JobFailure?

    let waitsForFinalize: Bool
    /// What comes after the copy is decided for all jobs of its group.
    private let isGrouped: Bool
    /// The job's first cancel is its good end.
    private let drains: Bool
    /// That cancel has come, and nothing since that would spoil it.
    private var isDraining = false
    private var isPauseAsked = false
    private var isFinalizing = false
    private var isCopying = true
    private var isIncomplete = false

    /// What the job and its target report.
    package enum Event: Sendable, Hashable {
        /// The point in time is fixed, the copy begins.
        case started
        /// Nothing of the copy is in flight after a pause.
        case quiescent
        /// An error has halted the copy, as its policy says; it goes on when it is resumed.
        case copyHalted(JobIOError)
        /// Something is missing in the target, and the job goes on.
        case incomplete
        /// Every byte is in the target, but for what is missing.
        case copied
        /// Every byte is in the targets of all jobs of its group.
        case groupCopied
        /// One of its group is finalized, and with it all are.
        case groupFinalized
        /// Another of its group has failed or is cancelled.
        case groupFailed
        /// The copy has ended because it was told to stop.
        case copyStopped
        /// The copy has ended with an error.
        case copyFailed(JobFailure)
        /// The target is whole, durable and has its name.
        case targetCompleted
        case targetFailed(JobFailure)
        /// The target is given up and nothing of it is left that will be removed.
        case targetAbandoned
        /// The job must end now for a reason that is nobody's error (the agent stops).
        case mustFail(JobFailure)
    }

    /// What the owner of the machine has to do, in order.
    package enum Effect: Sendable, Hashable {
        case stateChanged(
            JobState, previous: JobState, pauseReason: PauseReason?, pauseError: JobIOError? = nil)
        case ioError(JobIOError)
        /// The work is done and the job waits for `finalize`.
        case pending
        case pauseCopy
        case resumeCopy
        case stopCopy
        /// Copy what was saved until now, and nothing else.
        case finishCopy
        case completeTarget
        case abandonTarget
        /// The job has ended; the last effect of its life.
        case ended(JobResult)
        /// Forget the job and free its id.
        case dismissed
    }

    /// Why a verb is refused.
    package enum Refusal: Error, Sendable, Hashable {
        case wrongState(JobState, JobVerb)
        case alreadyPaused
        case notPaused
        case alreadyFinalizing
    }

    /// - Parameter drains: the job is one of sync mode `none`.
    package init(waitsForFinalize: Bool, drains: Bool = false, isGrouped: Bool = false) {
        self.waitsForFinalize = waitsForFinalize
        self.drains = drains
        self.isGrouped = isGrouped
    }

    /// The machine of a job that was so far when the agent ended.
    /// `pauseError` is what it was paused by.
    init(
        resuming phase: StoredJob.Phase, pauseError: JobIOError? = nil, waitsForFinalize: Bool, drains: Bool,
        isGrouped: Bool
    ) {
        self.init(waitsForFinalize: waitsForFinalize, drains: drains, isGrouped: isGrouped)
        switch phase {
        case .running: state = .running
        case .paused(let reason):
            (state, pauseReason, isPauseAsked) = (.paused, reason, true)
            if reason == .error { self.pauseError = pauseError }
        case .finishing: (state, isDraining) = (.aborting, true)
        case .waiting: (state, isCopying) = (.waiting, false)
        case .pending: (state, isCopying) = (.pending, false)
        case .finalizing, .decided:
            (state, isDraining) = (drains ? .aborting : .pending, drains)
            (isFinalizing, isCopying) = (true, false)
        case .cancelling: (state, isCopying) = (.aborting, false)
        case .failing(let error):
            (state, isCopying, failure) = (.aborting, false, JobFailure(error: error))
        }
    }

    /// The job does not go on, and nothing of it runs: what is left is to give its target up.
    mutating func failAtOnce(_ error: AgentError) {
        (state, pauseReason, pauseError, failure) = (.aborting, nil, nil, JobFailure(error: error))
        (isDraining, isFinalizing, isCopying) = (false, false, false)
    }

    /// How far the job is, for the next agent; nil when it has ended.
    var phase: StoredJob.Phase? {
        switch state {
        case .created, .running:
            isPauseAsked ? .paused(pauseError == nil ? .user : .error) : .running
        case .paused: .paused(pauseReason ?? .user)
        case .waiting: .waiting
        case .pending: isFinalizing ? .finalizing : .pending
        case .aborting where isDraining: isFinalizing ? .finalizing : .finishing
        case .aborting: failure.map { .failing($0.error) } ?? .cancelling
        case .concluded: nil
        }
    }

    /// Applies what somebody asked for, or refuses it and changes nothing. `isForced` is about cancel only: the job is given
    /// up, even if it could end well by it.
    package mutating func handle(_ verb: JobVerb, isForced: Bool = false) throws(Refusal) -> [Effect] {
        switch verb {
        case .pause:
            guard isCopyState else { throw .wrongState(state, verb) }
            guard !isPauseAsked else { throw .alreadyPaused }
            isPauseAsked = true
            return state == .created ? [] : [.pauseCopy]
        case .resume:
            guard isPauseAsked else { throw .notPaused }
            guard isCopyState else { throw .wrongState(state, verb) }
            isPauseAsked = false
            pauseError = nil
            guard state == .paused else { return state == .created ? [] : [.resumeCopy] }
            return [.resumeCopy] + change(to: .running)
        case .setSpeed:
            guard isCopyState else { throw .wrongState(state, verb) }
            return []
        case .cancel:
            switch state {
            case .concluded: throw .wrongState(state, verb)
            case .aborting: return isDraining ? stopDraining() : []
            case .running where drains && !isForced, .paused where drains && !isForced: return drain()
            default: return abort()
            }
        case .finalize:
            guard state == .pending else { throw .wrongState(state, verb) }
            guard !isFinalizing else { throw .alreadyFinalizing }
            isFinalizing = true
            return [.completeTarget]
        case .dismiss:
            guard state == .concluded else { throw .wrongState(state, verb) }
            return [.dismissed]
        }
    }

    /// Applies what happened. Reports that come too late to matter (a copy that finishes while the job is
    /// being cancelled) change nothing; errors are told all the same.
    package mutating func handle(_ event: Event) -> [Effect] {
        switch event {
        case .started:
            guard state == .created else { return [] }
            return change(to: .running) + (isPauseAsked ? [.pauseCopy] : [])
        case .quiescent:
            guard state == .running, isPauseAsked, isCopying else { return [] }
            pauseReason = pauseError == nil ? .user : .error
            return change(to: .paused)
        case .copyHalted(let error):
            guard state == .running || state == .paused, isCopying else { return [] }
            // From here on it is as if somebody had asked for it: a pause is refused, a resume is not. Of several errors the
            // first is the reason.
            guard pauseError == nil else { return [] }
            isPauseAsked = true
            pauseError = error
            guard state == .paused else { return [.pauseCopy] }
            // Heard of after a user's pause was reached.
            pauseReason = .error
            return change(to: .paused)
        case .incomplete:
            isIncomplete = true
            return []
        case .copied:
            isCopying = false
            if isDraining {
                isFinalizing = true
                return [.completeTarget]
            }
            guard state == .running || state == .paused else { return stopped() }
            isPauseAsked = false
            pauseReason = nil
            if isGrouped { return change(to: .waiting) }
            let effects = change(to: .waiting) + change(to: .pending)
            if waitsForFinalize { return effects + [.pending] }
            isFinalizing = true
            return effects + [.completeTarget]
        case .groupCopied:
            guard state == .waiting else { return [] }
            return change(to: .pending) + (waitsForFinalize ? [.pending] : [])
        case .groupFinalized:
            guard state == .pending else { return [] }
            isFinalizing = true
            return []
        case .groupFailed:
            guard state != .aborting, state != .concluded else { return [] }
            return abort()
        case .copyStopped:
            isCopying = false
            isDraining = false
            return stopped()
        case .copyFailed(let failure):
            isCopying = false
            if isDraining { return failDraining(failure) }
            guard state != .aborting else { return failTooLate(failure) }
            guard state != .concluded else { return [] }
            return fail(failure) + [.abandonTarget]
        case .targetCompleted:
            guard state == .pending || state == .aborting else { return [] }
            failure = nil
            return conclude(isIncomplete ? .completedWithErrors : .completed)
        case .targetFailed(let failure):
            isFinalizing = false
            if isDraining { return failDraining(failure) }
            // Being given up already: only told, and that the target was given up is nothing to tell.
            guard state != .aborting else { return tell(failure) }
            guard state == .pending else { return [] }
            return fail(failure) + [.abandonTarget]
        case .targetAbandoned:
            guard state == .aborting, !isCopying else { return [] }
            return conclude(failure == nil ? .cancelled : .failed)
        case .mustFail(let failure):
            if isDraining {
                self.failure = failure
                return stopDraining()
            }
            guard state != .aborting, state != .concluded else { return [] }
            self.failure = failure
            return abort()
        }
    }

    /// Pausing, resuming and changing the speed make sense.
    private var isCopyState: Bool { state == .created || state == .running || state == .paused }

    /// Leaves for `aborting` and stops what runs. The target is given up when the copy has stopped; one that
    /// is being completed is told to give up at once.
    private mutating func abort() -> [Effect] {
        let effects = change(to: .aborting)
        if isCopying { return effects + [.stopCopy] }
        return effects + [.abandonTarget]
    }

    /// Begins the good end of a job of sync mode `none`. A paused job drains nothing.
    private mutating func drain() -> [Effect] {
        isDraining = true
        defer { isPauseAsked = false }
        return (isPauseAsked ? [.resumeCopy] : []) + change(to: .aborting) + [.finishCopy]
    }

    /// Gives a job up that was about to end well.
    private mutating func stopDraining() -> [Effect] {
        isDraining = false
        return isCopying ? [.stopCopy] : [.abandonTarget]
    }

    private mutating func failDraining(_ failure: JobFailure) -> [Effect] {
        isDraining = false
        self.failure = failure
        return tell(failure) + [.abandonTarget]
    }

    /// The copy has failed, and somebody has asked for the job's end before he could hear of it. He gets what he asked for
    /// and is told; but a job that had lost its point in time by then was no backup any more, and has failed. (What is
    /// saved no more because of a cancel is not reported as lost.)
    private mutating func failTooLate(_ failure: JobFailure) -> [Effect] {
        if self.failure == nil, failure.isPointInTimeLost { self.failure = failure }
        return tell(failure) + stopped()
    }

    private func tell(_ failure: JobFailure) -> [Effect] { failure.ioError.map { [.ioError($0)] } ?? [] }

    /// The copy of a job that is being given up has ended.
    private func stopped() -> [Effect] {
        state == .aborting ? [.abandonTarget] : []
    }

    private mutating func fail(_ failure: JobFailure) -> [Effect] {
        self.failure = failure
        return tell(failure) + change(to: .aborting)
    }

    private mutating func conclude(_ result: JobResult) -> [Effect] {
        self.result = result
        isDraining = false
        return change(to: .concluded) + [.ended(result)]
    }

    private mutating func change(to new: JobState) -> [Effect] {
        let previous = state
        state = new
        if new != .paused {
            pauseReason = nil
            pauseError = nil
        }
        return [
            .stateChanged(
                new, previous: previous, pauseReason: pauseReason,
                pauseError: pauseReason == .error ? pauseError : nil)
        ]
    }
}
