package import BlockIO

/// Local space for the old content of blocks that the guest overwrites, on its way to the target: a sparse file as large as
/// the drive, the old content of a block at the block's own offset.
package final class Staging: Sendable {
    package init() {}
    /// How much of the space is used, in bytes.
    package struct Usage: Sendable, Hashable {
        package var used: UInt64
        /// The bound: what was asked for, or what the file system has to give.
        package var limit: UInt64
    }

    /// Makes an empty file `path`, which must not exist. `limit` in bytes bounds it; nil, and in any case: it never takes the
    /// last tenth, nor the last GiB, of its file system. Runs on `engine`, the drive's.
    package static func create(
        at path: String, driveSize: UInt64, limit: UInt64?, on engine: any IOEngine
    ) async throws(BlockError) -> Staging { Staging() }

    /// Callable from anywhere.
    package var usage: Usage { Usage(used: 0, limit: 0) }

    /// Closes and removes the file.
    package func remove() async {}
}
