package import BlockIO

/// A device of a test that passes its requests on to another one, but for those that it does itself.
package protocol DiskAbove: BlockDevice {
    var below: any BlockDevice { get }
}

extension DiskAbove {
    package var name: String { below.name }
    package var engine: any IOEngine { below.engine }
    package var size: UInt64 { below.size }
    package var isReadOnly: Bool { below.isReadOnly }
    package var limits: BlockLimits { below.limits }

    package func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try await below.read(range, into: buffer)
    }
    package func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await below.write(range, from: buffer)
    }
    package func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        try await below.writeZeroes(range, mayUnmap: mayUnmap)
    }
    package func discard(_ range: ByteRange) async throws(BlockError) { try await below.discard(range) }
    package func writebackFailure() -> BlockError? { below.writebackFailure() }
    package func flush() async throws(BlockError) { try await below.flush() }
    package func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        try await below.extents(in: range)
    }
    package func close() async throws(BlockError) { try await below.close() }
}
