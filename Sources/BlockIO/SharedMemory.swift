internal import CBlockIO
internal import Glibc

/// Memory that other processes of ours may map, too, and whose size never changes.
///
/// Whoever else has it mapped keeps it; what this process frees is only its own view.
package final class SharedMemory: Sendable {
    // SAFETY: address and length never change; who uses which bytes when is the business of the buffers in it.
    nonisolated(unsafe) package let bytes: UnsafeMutableRawBufferPointer
    /// The size of a large page in bytes.
    static let largePage = 2 << 20

    /// The file behind the memory, close-on-exec.
    let descriptor: Int32

    /// Makes `count` bytes of zeroes.
    package convenience init(count: Int) throws(BlockError) {
        let descriptor = cblockio_shared_memory(count)
        guard descriptor >= 0 else {
            throw BlockError("Couldn't make shared memory of \(count) bytes", errno: -descriptor)
        }
        try self.init(adopting: descriptor)
    }

    /// Maps memory that another process has made; the descriptor is owned from here on, also when it throws.
    package init(adopting descriptor: Int32) throws(BlockError) {
        var status = stat()
        var address: UnsafeMutableRawPointer?
        var result = cblockio_stat(descriptor, &status)
        let count = Int(status.st_size)
        if result == 0 { result = cblockio_map_aligned(descriptor, count, Self.largePage, &address) }
        guard result == 0, let address else {
            _ = cblockio_close(descriptor)
            throw BlockError("Couldn't map shared memory", errno: -result)
        }
        self.descriptor = descriptor
        bytes = UnsafeMutableRawBufferPointer(start: address, count: count)
    }

    deinit {
        if let address = bytes.baseAddress { _ = cblockio_unmap(address, bytes.count) }
        _ = cblockio_close(descriptor)
    }

    package var count: Int { bytes.count }

    /// Puts a large page where `offset`, a multiple of its size, is, if there is one to be had: what has fewer parts the disk
    /// takes faster. Its contents are kept, also when somebody uses it meanwhile. Blocks.
    func useLargePage(at offset: Int) {
        precondition(offset % Self.largePage == 0, "a large page begins at a multiple of its size")
        guard offset + Self.largePage <= count, let start = bytes.baseAddress else { return }
        // Refused, the same is done with small pages.
        _ = cblockio_use_large_page(start + offset, Self.largePage)
    }

    /// Gives whole pages back to the system, for all processes that have the memory: they read as zeroes, and take memory
    /// again when they are written.
    func giveBack(_ range: Range<Int>) {
        precondition(range.lowerBound >= 0 && range.upperBound <= count, "what is given back is ours")
        // Refused, it stays as it is: nothing but memory is lost by that.
        _ = cblockio_fallocate(
            descriptor, cblockio_punch_hole | cblockio_keep_size, UInt64(range.lowerBound),
            UInt64(range.count))
    }
}
