internal import BlockIO
internal import Glibc
internal import Synchronization
internal import TestKit

@testable internal import BackupJobs

/// What the part of a staging file behind that of the drive holds: bytes of anything. It outlives the agents that use it.
final class LogContent: Sendable {
    let bytes: Mutex<[UInt8]>
    /// The disk has lost something, and nobody was told.
    let isLossUntold = Atomic(false)

    init(_ shape: StagingLog.Shape) { bytes = Mutex([UInt8](repeating: 0, count: Int(shape.fileLength))) }
}

/// A staging file as one agent sees it: the simulated disk, and a log behind it whose requests take their time, in pieces, too.
final class LiveStaging: DiskAbove {
    private let blocks: LiveDisk
    private let log: LogContent
    /// Writes to the log fail, sometimes.
    private let isFaulty: Bool
    /// The disk loses what was written, sometimes.
    private let isLosing: Bool

    var below: any BlockDevice { blocks }
    var size: UInt64 { blocks.size + log.bytes.withLock { UInt64($0.count) } }

    init(_ blocks: LiveDisk, log: LogContent, isFaulty: Bool, isLosing: Bool = false) {
        self.blocks = blocks
        self.log = log
        self.isFaulty = isFaulty
        self.isLosing = isLosing
    }

    func writebackFailure() -> BlockError? {
        guard log.isLossUntold.exchange(false, ordering: .relaxed) else { return nil }
        var error = BlockError("Couldn't write back what was written to \(name)", errno: EIO)
        error.code = .dataLost
        return error
    }

    private func isInLog(_ range: ByteRange) -> Bool {
        precondition(range.offset >= blocks.size || range.end <= blocks.size, "no request is for both parts")
        return range.offset >= blocks.size
    }

    private func positions(_ range: ByteRange) -> Range<Int> {
        Int(range.offset - blocks.size)..<Int(range.end - blocks.size)
    }

    private func delay() async {
        let time = blocks.sim.random { chance in
            chance.oneIn(10) ? chance.below(30_000) : chance.oneIn(3) ? 0 : chance.below(800)
        }
        if time > 0 { await blocks.sim.pass(.microseconds(time)) }
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        if isInLog(range) {
            await delay()
            log.bytes.withLock { buffer.bytes.copyBytes(from: $0[positions(range)]) }
        } else {
            try await blocks.read(range, into: buffer)
        }
        guard isLosing, blocks.sim.random({ $0.oneIn(4) }) else { return }
        Trace.note("staging: \(range) lost")
        buffer.bytes.initializeMemory(as: UInt8.self, repeating: 0)
        log.isLossUntold.store(true, ordering: .relaxed)
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        guard isInLog(range) else { return try await blocks.write(range, from: buffer) }
        let fails = isFaulty && blocks.sim.random { $0.oneIn(2) }
        Trace.note("log: \(range) written\(fails ? ", in vain" : "")")
        // What it takes in the end is what the memory has then.
        for start in stride(from: 0, to: buffer.count, by: 2048) {
            await delay()
            if fails, start > 0 {
                throw BlockError("Couldn't write \(range) of \(name)", errno: ENOSPC, range: range)
            }
            land(buffer[start..<min(start + 2048, buffer.count)], at: positions(range).lowerBound + start)
        }
    }

    private func land(_ part: IOSlice, at position: Int) {
        log.bytes.withLock {
            $0.replaceSubrange(position..<position + part.count, with: Array(part.bytes))
        }
    }

    var canWritePastCache: Bool { true }

    func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool {
        !isInLog(range) && blocks.writeAtOnce(range, from: buffer)
    }

    func writeZeroes(_: ByteRange, mayUnmap _: Bool) async throws(BlockError) {
        throw BlockError(.unsupported, "Couldn't write zeroes to staging: nobody does")
    }

    func discard(_ range: ByteRange) async throws(BlockError) {
        guard !range.isEmpty else { return }
        guard isInLog(range) else { return try await blocks.discard(range) }
        await delay()
        let positions = positions(range)
        log.bytes.withLock {
            $0.replaceSubrange(positions, with: [UInt8](repeating: 0, count: positions.count))
        }
    }
}

extension LiveAgent {
    /// What the log holds when all is done must be of clusters that were not, or that somebody was still reading.
    func lookAtLog(of job: BackupJob, done: Set<Int>) {
        let (pinned, retired) = (job.point.state.value.unpunched, job.point.state.value.retired)
        for block in job.record.log.blocks {
            let cluster = block / job.point.blocksPerCluster
            if done.contains(cluster), !pinned.contains(cluster),
                !retired.holds(cluster / retired.clustersPerStretch)
            {
                history.complain("the log holds block \(block), whose cluster is done")
            }
        }
    }
}
