internal import BlockIO
internal import Synchronization

@testable internal import BackupJobs

/// What the file of a job's digests holds; it outlives the agents that use it.
final class SumsContent: Sendable {
    let bytes: Mutex<[UInt8]>

    init(driveSize: UInt64, _ algorithm: DigestAlgorithm) {
        let length = Int(BlockSums.length(driveSize: driveSize, algorithm: algorithm))
        bytes = Mutex([UInt8](repeating: 0, count: length))
    }
}

/// The file of digests as one agent sees it: a write takes its time, and is lost with its agent.
final class LiveSumsFile: BlockDevice {
    private let content: SumsContent
    private let sim: SimEngine

    let name = "sums"
    let isReadOnly = false
    let limits = BlockLimits()
    var engine: any IOEngine { sim }
    var size: UInt64 { content.bytes.withLock { UInt64($0.count) } }

    init(_ content: SumsContent, _ sim: SimEngine) {
        self.content = content
        self.sim = sim
    }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "read")
        content.bytes.withLock { buffer.bytes.copyBytes(from: $0[Int(range.offset)..<Int(range.end)]) }
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "write")
        await sim.pass(.microseconds(sim.random { $0.oneIn(10) ? $0.below(20_000) : $0.below(400) }))
        content.bytes.withLock {
            $0.replaceSubrange(Int(range.offset)..<Int(range.end), with: Array(buffer.bytes))
        }
    }

    func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        throw BlockError(.unsupported, "Couldn't write zeroes to digests: nobody does")
    }

    func discard(_ range: ByteRange) async throws(BlockError) {}
    func flush() async throws(BlockError) {}
    func close() async throws(BlockError) {}

    func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        [Extent(range, isZero: false, isAllocated: true)]
    }
}

extension LiveHistory {
    /// The digests of what was copied must be those of the point in time. (There are none that count of a job that cloned.)
    func judgeSums(_ state: State) throws(BlockError) {
        guard let sums, !state.isCloned else { return }
        let slots = sums.bytes.withLock { $0 }
        let (length, unitsPerBlock) = (Self.algorithm.length, Int(ContentDigests.blockSize / 512))
        for block in 0..<slots.count / length {
            let units = block * unitsPerBlock..<min(Int(size / 512), (block + 1) * unitsPerBlock)
            let cluster = units.lowerBound / unitsPerCluster
            guard state.done.contains(cluster), options.sync != .top || state.isNeeded[cluster] == true,
                !units.contains(where: { state.missing.contains($0 / 8) })
            else { continue }
            let slot = Array(slots[block * length..<(block + 1) * length])
            let values = units.map { state.truth[$0] ?? 0 }
            if slot.allSatisfy({ $0 == 0 }) {
                if values.contains(where: { $0 != 0 }) { complain("there is no digest of block \(block)") }
                continue
            }
            var bytes = [UInt8](repeating: 0, count: units.count * 512)
            bytes.withUnsafeMutableBytes { bytes in
                for (index, value) in values.enumerated() {
                    let part = UnsafeMutableRawBufferPointer(rebasing: bytes[index * 512..<(index + 1) * 512])
                    DiskContent.fill(part, value, unit: units.lowerBound + index)
                }
            }
            self.state.withLock { $0.digestsCompared += 1 }
            if slot != (try Self.algorithm.digest(bytes)) {
                complain("the digest of block \(block) is not that of the point in time")
            }
        }
    }
}
