extension StagingLog {
    /// How many of what there are.
    struct Shape: Sendable, Hashable {
        let blocksPerSegment: Int
        /// Segments that fit into memory at the same time.
        let buffers: Int
        let segments: Int

        /// Bytes of the staging file that it may take.
        var fileLength: UInt64 { UInt64(segments) * segmentLength }
        var segmentLength: UInt64 { UInt64(blocksPerSegment) * JobRecord.blockSize }

        init(blocksPerSegment: Int = 128, buffers: Int = 32, segments: Int = 5120) {
            self.blocksPerSegment = blocksPerSegment
            self.buffers = buffers
            self.segments = segments
        }

        /// The words that a record has; nil when they are of none.
        init?(_ blocksPerSegment: UInt64, _ buffers: UInt64, _ segments: UInt64) {
            guard (1...4096).contains(blocksPerSegment), (1...4096).contains(buffers),
                (1...1 << 20).contains(segments)
            else { return nil }
            self.init(
                blocksPerSegment: Int(blocksPerSegment), buffers: Int(buffers), segments: Int(segments))
        }

        var slots: Int { segments * blocksPerSegment }
        var holdersLength: Int { (buffers * 8).roundedUpToPage }
        var tableLength: Int { (slots * 8).roundedUpToPage }

        /// Bytes of the record that it takes, in whole pages.
        var recordLength: Int { holdersLength + tableLength + buffers * Int(segmentLength) }
    }
}

extension Int {
    fileprivate var roundedUpToPage: Int { (self + 4095) / 4096 * 4096 }
}
