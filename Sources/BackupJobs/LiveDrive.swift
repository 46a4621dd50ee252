package import BlockIO

/// A drive as its guests see it: the image, and in front of it what a running backup needs to save before it changes.
///
/// One per open drive; everything that writes to the drive goes through it. Without a job it passes requests on.
package final class LiveDrive: BlockDevice {
    /// The drive's image, below.
    package let device: any BlockDevice

    package init(_ device: any BlockDevice) { self.device = device }

    package var name: String { device.name }
    package var engine: any IOEngine { device.engine }
    package var size: UInt64 { device.size }
    package var isReadOnly: Bool { device.isReadOnly }
    package var limits: BlockLimits { device.limits }
    package func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try await device.read(range, into: buffer)
    }
    package func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await device.write(range, from: buffer)
    }
    package func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) {
        try await device.writeZeroes(range, mayUnmap: mayUnmap)
    }
    package func discard(_ range: ByteRange) async throws(BlockError) { try await device.discard(range) }
    package func flush() async throws(BlockError) { try await device.flush() }
    package func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        try await device.extents(in: range)
    }
    package func close() async throws(BlockError) { try await device.close() }
}
