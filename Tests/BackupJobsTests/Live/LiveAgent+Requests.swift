internal import BlockIO
internal import Synchronization

@testable internal import BackupJobs

/// What the history knows of a guest's requests.
extension LiveAgent {
    /// Writes without a task, where the drive does that. What the history has to know of the end it learns in the same step as
    /// the drive: from then on others change the same clusters.
    func beginWrite(_ index: Int, _ range: ByteRange, _ slice: IOSlice) async -> BegunEnd {
        await withUnsafeContinuation { caller in
            let hasBegun = drive.beginWrite(range, from: slice) { end in
                switch end {
                case .done: self.noteEnd(index)
                case .unfinished: self.noteBreak(index)
                case .failed: break
                }
                caller.resume(returning: end)
            }
            if !hasBegun { caller.resume(returning: .unfinished) }
        }
    }

    /// Mostly others come with a write. Here they go astray, and what they would have overwritten is saved all the same.
    func expectWrites(_ range: ByteRange) {
        let size = history.size
        let ranges = sim.random { chance -> [ByteRange] in
            guard chance.oneIn(2) else { return [] }
            var ranges = (0..<chance.below(8)).map { _ in
                let offset = chance.below(size / 512) * 512
                return ByteRange(
                    offset: offset, length: min(size - offset, chance.pick([512, 1024, 4096, 8192])))
            }
            ranges += [range, range.prefix(512)]
            ranges.shuffle(using: &chance)
            return ranges
        }
        drive.expectWrites { ranges }
    }

    @discardableResult
    func noteStart(_ index: Int) -> LiveHistory.Request {
        history.state.withLock { state in
            state.turn += 1
            if state.requests[index].start == 0 { state.requests[index].start = state.turn }
            state.requests[index].isAtRest = false
            return state.requests[index]
        }
    }

    func noteEnd(_ index: Int) {
        let request = history.state.withLock { state in
            state.turn += 1
            state.requests[index].end = state.turn
            return state.requests[index]
        }
        Trace.note("guest: \(request.kind) \(request.units) = \(request.value) answered")
        settle(request)
    }

    /// What there is of it is done, and the drive knows nothing of it until it is sent once more.
    private func noteBreak(_ index: Int) {
        let request = history.state.withLock { state in
            let request = state.requests[index]
            state.requests[index].isBefore = false
            state.requests[index].isAtRest = true
            return request
        }
        settle(request)
    }

    private func settle(_ request: LiveHistory.Request) {
        guard request.isBefore else { return }
        for cluster in history.clusters(of: request.units) { history.settle(cluster) }
    }
}
