internal import BlockIO

/// What becomes of a chunk that has ended, and of the copy when one has failed.
extension CopyLoop {
    /// In flight -> done; or to copy again after a failure, about which is done what its policy says. True when done.
    func settle(_ clusters: Range<Int>, _ failure: BackupFailure?) -> Bool {
        let blocks = point.blocks(of: point.bytes(of: clusters))
        let lacking = state.withState { state in
            defer { state.lacking.removeAll { blocks.contains($0.lowerBound) } }
            return state.lacking.filter { blocks.contains($0.lowerBound) }
        }
        var failure = failure
        if failure == nil {
            do throws(BlockError) { try point.noteLacking(lacking) } catch {
                failure = .failed(IOFailure(.staging, .write, point.bytes(of: clusters), error))
            }
        }
        guard let failure else {
            state.withState { $0.map.finish(clusters) }
            point.forgetMissing(in: clusters, but: lacking)
            return true
        }
        state.withState { $0.map.giveUp(clusters) }
        // It may be told once, and an agent that goes on after a kill would hear nothing any more.
        if failure.ioFailure?.error.code == .dataLost { point.record.setBroken() }
        guard !isLeft(by: failure) else {
            point.noteToCopy(clusters)
            return false
        }
        if let error = failure.ioFailure, halts(error) {
            point.noteToCopy(clusters)
            control.halt()
            point.state.value.tell(error, .stop)
        } else {
            state.withState { state in
                if state.failure == nil { state.failure = failure }
            }
        }
        return false
    }

    /// The agent ends, and so has the target before all of its requests: the next agent does again what has failed.
    func isLeft(by failure: BackupFailure) -> Bool {
        control.isSuspended && failure.ioFailure?.error.code != .dataLost
    }

    /// Whether the copy stops at an error, and goes on when it is resumed. One that is ending cannot be paused.
    private func halts(_ failure: IOFailure) -> Bool {
        guard !isEnding, !control.isFinishing else { return false }
        return switch failure.side {
        case .source: options.onSourceError.action(on: failure.error) == .stop
        case .target: options.onTargetError.action(on: failure.error) == .stop
        case .staging: false
        }
    }

    var failure: BackupFailure? { state.withState { $0.failure } }

    /// The first failure is kept. The point in time is of no use any more: the guest is let go at once, and the target,
    /// which may hang, is not waited for.
    func fail(_ failure: BackupFailure) {
        state.withState { state in
            if state.failure == nil { state.failure = failure }
        }
        point.letGo()
        guard !requests.isAbandoned else { return }
        control.failed()
        requests.abandon()
    }

    /// Nothing new is to be begun.
    var isEnding: Bool { failure != nil || control.isCancelled || requests.isAbandoned }
}
