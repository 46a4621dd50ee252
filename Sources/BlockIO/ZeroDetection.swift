internal import CBlockIO

/// Finds out whether memory is all zeroes, at memory speed.
package enum ZeroDetection {
    /// True when every byte is zero; true for no bytes at all. Looks at most 4 KiB beyond the first other byte.
    package static func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let start = bytes.baseAddress else { return true }
        return cblockio_is_zero(start, bytes.count)
    }

    /// The same for writable memory.
    package static func isZero(_ bytes: UnsafeMutableRawBufferPointer) -> Bool {
        isZero(UnsafeRawBufferPointer(bytes))
    }
}
