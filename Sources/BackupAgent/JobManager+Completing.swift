internal import BackupJobs
internal import BlockIO
internal import Logging

// The end of jobs that have copied everything, of one alone or of all of a group that completes together:
//
//   each target made durable ─► decided, durably ─► each target gets its name ─► each job completed
//
// Up to the decision all can still fail, and an agent that is killed goes on with all of them as they were. From it on
// all complete: one that finds the decision at its start gives those targets their names that have none.

extension JobManager {
    // MARK: Groups

    /// The jobs that complete together with this one, itself included.
    func companions(of number: JobNumber) -> [JobNumber] {
        guard let record = records[number], record.spec.isGrouped else { return [number] }
        return records.values.filter { $0.info.group == record.info.group }.map(\.number).sorted()
    }

    /// Looks what follows from a job's state for those that complete together with it.
    func groupChanged(_ number: JobNumber) {
        guard records[number]?.spec.isGrouped == true else { return }
        let numbers = companions(of: number)
        let members = numbers.compactMap { records[$0] }
        guard !members.contains(where: { $0.isDecided || $0.started == nil }) else { return }
        if members.contains(where: { $0.machine.failure != nil || $0.machine.state == .aborting }) {
            // Also while the agent stops: the next one does not know any more what has ended.
            for member in numbers { report(.groupFailed, member) }
        } else if !isStopping, members.allSatisfy({ $0.machine.state == .waiting }) {
            for member in numbers { report(.groupCopied, member) }
            let waits = members.contains { $0.spec.waitsForFinalize }
            if !waits { setOffCompletion(number) }
        }
    }

    // MARK: Completing

    /// Completes the job and all that complete together with it.
    func setOffCompletion(_ number: JobNumber) {
        let numbers = companions(of: number)
        guard !isStopping, numbers.allSatisfy({ records[$0]?.isCompleting == false }) else { return }
        for member in numbers { records[member]?.isCompleting = true }
        if records[number]?.spec.isGrouped == true {
            for member in numbers {
                guard let effects = records[member]?.machine.handle(.groupFinalized) else { continue }
                precondition(effects.isEmpty, "to be finalized has no effect but this one")
                save(member)
            }
        }
        let task = Task { await self.complete(numbers) }
        for member in numbers { own(member, task) }
    }

    /// Completes the targets of jobs that have copied everything: of all, or of none.
    func complete(_ numbers: [JobNumber]) async {
        let arePrepared = await withTaskGroup(of: Bool.self) { group in
            for number in numbers { group.addTask { await self.prepareTarget(number) } }
            var areAll = true
            for await isPrepared in group where !isPrepared { areAll = false }
            return areAll
        }
        guard arePrepared, await decide(numbers) else { return }
        await withTaskGroup(of: Void.self) { group in
            for number in numbers { group.addTask { await self.publish(number) } }
        }
    }

    private func prepareTarget(_ number: JobNumber) async -> Bool {
        guard let target = records[number]?.target, let job = records[number]?.hold?.job else { return false }
        if let failure = await finishContent(number, job, target) {
            if isLeaving, records[number]?.goesOn == true { return false }
            report(.targetFailed(noting(failure, number)), number)
            return false
        }
        do throws(BlockError) { try await job.prepare() } catch {
            if !(isLeaving && records[number]?.goesOn == true) {
                report(.targetFailed(noting(finishFailure(error, target), number)), number)
            }
            return false
        }
        return true
    }

    /// All are durable: that they complete is kept before the first gets its name. False when one was given up meanwhile,
    /// or it cannot be kept for a group.
    private func decide(_ numbers: [JobNumber]) async -> Bool {
        let members = numbers.compactMap { records[$0] }
        let isGroup = members.contains { $0.spec.isGrouped }
        // Whoever was cancelled meanwhile is given up by that, and all of a group with it.
        guard members.count == numbers.count, members.allSatisfy({ $0.machine.phase == .finalizing }) else {
            return false
        }
        // From here on a cancel comes too late for a group.
        for number in numbers { records[number]?.isDecided = true }
        do throws(AgentError) {
            try await store?.keep(numbers.compactMap { records[$0].flatMap(stored) })
        } catch {
            guard isGroup else {
                // The name itself tells the next agent.
                logger.error("\(error.message)")
                return true
            }
            for number in numbers { records[number]?.isDecided = false }
            for number in numbers { undecide(number, error) }
            return false
        }
        return true
    }

    /// The decision could not be kept. Who has cancelled the job meanwhile was put off until now.
    private func undecide(_ number: JobNumber, _ error: AgentError) {
        if records[number]?.machine.state == .aborting {
            own(number, Task { await self.giveUp(number) })
        } else {
            report(.targetFailed(JobFailure(error: error)), number)
        }
    }

    /// Gives a target that is durable its name. The drive is given back before anybody hears of it.
    func publish(_ number: JobNumber) async {
        guard let target = records[number]?.target else { return }
        do throws(BlockError) { try await target.publish() } catch {
            if isLeaving, records[number]?.goesOn == true { return }
            let isGroupCancelled =
                records[number]?.spec.isGrouped == true && records[number]?.machine.state == .aborting
            records[number]?.isDecided = false
            report(.targetFailed(noting(finishFailure(error, target), number)), number)
            if isGroupCancelled { await giveUp(number) }
            return
        }
        await end(number)
    }

    /// The target is complete.
    func end(_ number: JobNumber) async {
        await letGo(number)
        await filesRemoved(number)
        report(.targetCompleted, number)
    }
}
