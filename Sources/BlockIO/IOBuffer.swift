internal import Glibc

/// Memory for one request's bytes, aligned for direct I/O, owned by whoever holds the reference.
///
/// It is lent, not shared: between `read` and the completion of the `write` that follows only one task uses it.
public final class IOBuffer: Sendable {
    /// Alignment of every buffer in bytes; enough for O_DIRECT on all common devices.
    package static let alignment = 4096

    // SAFETY: the address and length never change; the bytes are used by one request at a time, handed from task
    // to task along `await`s, as the contract above demands.
    nonisolated(unsafe) public let bytes: UnsafeMutableRawBufferPointer
    /// The memory that the buffer is a part of; nil for one of its own.
    package let memory: SharedMemory?
    /// The file that it is a part of; nil for other memory.
    private let file: MappedFile?

    package init(count: Int) {
        var address: UnsafeMutableRawPointer?
        let result = posix_memalign(&address, Self.alignment, max(count, 1))
        guard result == 0, let address else { preconditionFailure("out of memory for \(count) bytes") }
        bytes = UnsafeMutableRawBufferPointer(start: address, count: count)
        memory = nil
        file = nil
    }

    /// A part of a mapped file, from a multiple of the alignment, which has space wherever the buffer is used. Whoever makes it
    /// knows that nobody else uses it.
    package init(in file: MappedFile, at offset: Int, count: Int) {
        precondition(offset >= 0 && count >= 0 && offset <= file.length - count, "a buffer lies in its file")
        bytes = UnsafeMutableRawBufferPointer(rebasing: file.bytes[offset..<offset + count])
        memory = nil
        self.file = file
    }

    /// A part of shared memory, from a multiple of the alignment. Whoever makes it knows that nobody else uses it.
    package init(in memory: SharedMemory, at offset: Int, count: Int) {
        precondition(
            offset >= 0 && count >= 0 && offset <= memory.count - count, "a buffer lies in its memory")
        bytes = UnsafeMutableRawBufferPointer(rebasing: memory.bytes[offset..<offset + count])
        self.memory = memory
        file = nil
    }

    deinit { if memory == nil, file == nil { free(bytes.baseAddress) } }

    @inlinable
    public var count: Int { bytes.count }

    /// Gives its pages back to the system where it lies in shared memory; its contents are zeroes then.
    func giveBack() {
        guard let memory, let offset = slice.offset(in: memory) else { return }
        memory.giveBack(offset..<offset + count)
    }

    /// The whole buffer.
    @inlinable
    public var slice: IOSlice { IOSlice(self, 0..<count) }

    /// A part of the buffer, by positions in it.
    @inlinable
    public subscript(_ positions: Range<Int>) -> IOSlice { IOSlice(self, positions) }
}

/// A part of an `IOBuffer`, which it keeps alive.
public struct IOSlice: Sendable {
    public let buffer: IOBuffer
    /// Where in the buffer the part lies.
    public let positions: Range<Int>

    @inlinable
    public init(_ buffer: IOBuffer, _ positions: Range<Int>) {
        precondition(
            positions.lowerBound >= 0 && positions.upperBound <= buffer.count, "a slice lies in its buffer")
        self.buffer = buffer
        self.positions = positions
    }

    @inlinable
    public var count: Int { positions.count }

    /// Where in `memory` the part lies, in bytes; nil when it does not.
    package func offset(in memory: SharedMemory) -> Int? {
        guard buffer.memory === memory, let start = buffer.bytes.baseAddress,
            let base = memory.bytes.baseAddress
        else { return nil }
        return base.distance(to: start) + positions.lowerBound
    }

    /// The bytes themselves. They must not be used after the slice is gone.
    @inlinable
    public var bytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[positions])
    }

    /// A part of this part, by positions relative to it.
    @inlinable
    public subscript(_ relative: Range<Int>) -> IOSlice {
        IOSlice(
            buffer,
            positions.lowerBound + relative.lowerBound..<positions.lowerBound + relative.upperBound)
    }
}
