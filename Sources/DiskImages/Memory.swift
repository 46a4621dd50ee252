internal import Glibc

extension UnsafeMutableRawBufferPointer {
    func fillWithZeroes() {
        guard let baseAddress, count > 0 else { return }
        memset(baseAddress, 0, count)
    }

    /// Copies `source`, which is no longer than this, to the start.
    func copyBytesQuickly(from source: UnsafeRawBufferPointer) {
        precondition(source.count <= count, "a copy fits its place")
        guard let baseAddress, let from = source.baseAddress, source.count > 0 else { return }
        memcpy(baseAddress, from, source.count)
    }
}
