internal import BlockIO

/// Writes what was read into one buffer, and leaves out the zeroes; and what the target does not take, where that is the
/// policy.
struct PieceWriter: Sendable {
    let target: any BackupTarget
    /// The unit in which zeroes are looked for, in bytes.
    let zeroUnit: Int
    /// Zeroes need not be written since the target reads as zero there.
    let skipsZeroes: Bool
    /// The unit in which is left out what cannot be written, in bytes: the job's cluster.
    let clusterSize: UInt64
    let policy: ErrorPolicy
    let clock: JobClock
    /// Told of each range that is left out.
    let leaveOut: @Sendable (IOFailure) -> Void

    /// Writes `bytes`, the content of `piece`, one run of data or zeroes after the other. Ends early when its task is
    /// cancelled: then nobody asks for the result.
    func write(_ piece: ByteRange, from bytes: IOSlice) async -> BackupFailure? {
        var start = 0
        while start < bytes.count {
            if Task.isCancelled { return .cancelled }
            let (isZero, end) = run(of: bytes, from: start)
            let range = ByteRange(offset: piece.offset + UInt64(start), length: UInt64(end - start))
            if !isZero {
                if let failure = await put(range, bytes[start..<end]) { return failure }
            } else if !skipsZeroes {
                if let failure = await put(range, nil) { return failure }
            }
            start = end
        }
        return nil
    }

    /// Makes `range` read as zeroes.
    func writeZeroes(_ range: ByteRange) async -> BackupFailure? { await put(range, nil) }

    // MARK: One run

    /// Writes `bytes`, or zeroes where there are none. Under `ignore` what fails is tried again cluster by cluster, a few
    /// times, and then left out. The buffer is held meanwhile, which is why that takes no longer than it does.
    private func put(_ run: ByteRange, _ bytes: IOSlice?) async -> BackupFailure? {
        guard let error = await attempt(run, of: run, bytes) else { return nil }
        guard policy.action(on: error) == .ignore else { return failure(run, bytes, error) }
        var failed = clusters(of: run).map { (range: $0, error: error) }
        for pause in [.zero] + ErrorPolicy.pauses {
            // Only the task of a request that was abandoned is not allowed to sleep.
            if pause > .zero, (try? await clock.sleep(pause)) == nil { return .cancelled }
            var still: [(range: ByteRange, error: BlockError)] = []
            for (range, _) in failed {
                if Task.isCancelled { return .cancelled }
                guard let error = await attempt(range, of: run, bytes) else { continue }
                guard policy.action(on: error) == .ignore else { return failure(range, bytes, error) }
                if let last = still.last, pause == ErrorPolicy.pauses.last, last.range.end == range.offset,
                    last.error.errno == error.errno
                {
                    still[still.count - 1].range = ByteRange(last.range.offset..<range.end)
                } else {
                    still.append((range, error))
                }
            }
            failed = still
            if failed.isEmpty { return nil }
        }
        for (range, error) in failed {
            leaveOut(IOFailure(.target, bytes == nil ? .writeZeroes : .write, range, error))
        }
        return nil
    }

    private func failure(_ range: ByteRange, _ bytes: IOSlice?, _ error: BlockError) -> BackupFailure {
        .failed(IOFailure(.target, bytes == nil ? .writeZeroes : .write, range, error))
    }

    private func attempt(_ range: ByteRange, of run: ByteRange, _ bytes: IOSlice?) async -> BlockError? {
        do throws(BlockError) {
            if let bytes {
                let start = Int(range.offset - run.offset)
                try await target.write(range, from: bytes[start..<start + Int(range.length)])
            } else {
                try await target.writeZeroes(range)
            }
            return nil
        } catch {
            return error
        }
    }

    private func clusters(of run: ByteRange) -> [ByteRange] {
        var parts: [ByteRange] = []
        var rest = run
        while !rest.isEmpty {
            let end = (rest.offset + 1).roundedUp(toMultipleOf: clusterSize)
            parts.append(ByteRange(rest.offset..<min(end, rest.end)))
            rest = rest.dropFirst(min(end, rest.end) - rest.offset)
        }
        return parts
    }

    /// Whether the unit at `start` is all zero, and the end of the run of units that are alike.
    private func run(of bytes: IOSlice, from start: Int) -> (isZero: Bool, end: Int) {
        let bytes = bytes.bytes
        var end = min(start + zeroUnit, bytes.count)
        let isZero = ZeroDetection.isZero(UnsafeRawBufferPointer(rebasing: bytes[start..<end]))
        while end < bytes.count {
            let next = min(end + zeroUnit, bytes.count)
            guard ZeroDetection.isZero(UnsafeRawBufferPointer(rebasing: bytes[end..<next])) == isZero else {
                break
            }
            end = next
        }
        return (isZero, end)
    }
}
