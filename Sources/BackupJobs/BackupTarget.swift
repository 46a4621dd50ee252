package import BlockIO

/// Where a backup job's bytes go: a new or existing image that becomes whole only at `complete`.
///
/// The job calls these from its own executor and hands over no descriptor, path or closure, only ranges and a
/// buffer, so that an implementation may work in this process or in another one with the buffers in shared memory.
/// Several writes may be in flight at once, never two of overlapping ranges.
package protocol BackupTarget: AnyObject, Sendable {
    /// The target's own name, without `.partial`, for messages.
    var name: String { get }
    /// The unit of allocation in bytes, a power of two: an image's cluster, a file system's
    /// block for raw. Zeroes are looked for in this unit.
    var clusterSize: UInt64 { get }

    /// Writes `buffer` at `range`. When it returns, the data and the mapping that finds it outlive this process,
    /// though not the host.
    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError)

    /// Makes `range` read as zeroes, without using space where the format can; it masks a backing file.
    func writeZeroes(_ range: ByteRange) async throws(BlockError)

    /// Reads what was written before, for the view of the point in time: whole or parts of clusters that were written.
    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError)

    /// Whether `clone` may be tried.
    var clones: Bool { get }

    /// Makes `range`, whole clusters of the job, hold what the drive holds there, by sharing the drive's blocks: a read of
    /// the drive and a write to the target, of each part at some time before it returns. What it has cloned outlives this
    /// process as what was written does. Throws `.unsupported` when it cannot be: then nothing has changed. After another
    /// error the range holds what it held, or what the drive has, in parts.
    func clone(_ range: ByteRange) async throws(BlockError)

    /// Makes everything durable and closes the image, so that only its name is missing. Nothing is written or read
    /// afterwards. After an error the target is not complete and `abandon` follows.
    func prepare() async throws(BlockError)

    /// Gives what is prepared its final name, flushes the directory and releases all locks: the target is complete. One that
    /// an earlier process has prepared may be published as soon as it is open. After an error `abandon` follows.
    func publish() async throws(BlockError)

    /// Gives the target up: whatever is in flight ends or is left behind, and a file that this target created is
    /// removed unless `keep`. A file that existed before is left as it is.
    func abandon(keep: Bool) async
}

extension BackupTarget {
    package var clones: Bool { false }

    package func clone(_ range: ByteRange) async throws(BlockError) {
        throw BlockError(.unsupported, "\(name) cannot share the blocks of a drive")
    }
}
