/// A run of bytes: where it starts and how long it is, both in bytes.
///
/// Offset and length travel together everywhere (public, as `EngineIsolated` is, to be inlined in other modules); `end` never exceeds `UInt64.max`.
public struct ByteRange: Sendable, Hashable {
    /// The first byte's offset.
    public let offset: UInt64
    /// The number of bytes; zero is allowed.
    public let length: UInt64

    /// Makes the range of `length` bytes from `offset`; traps if its end is not a 64-bit number, which input
    /// from outside is checked for before it becomes a range.
    @inlinable
    public init(offset: UInt64, length: UInt64) {
        precondition(
            !offset.addingReportingOverflow(length).overflow, "a byte range must end within 64 bits")
        self.offset = offset
        self.length = length
    }

    @inlinable
    public init(_ range: Range<UInt64>) {
        self.init(offset: range.lowerBound, length: range.upperBound - range.lowerBound)
    }

    /// The offset just behind the last byte.
    @inlinable
    public var end: UInt64 { offset + length }
    @inlinable
    public var isEmpty: Bool { length == 0 }

    /// The part of this range that lies inside `other`; empty (at a bound of `other`) where they do not meet.
    @inlinable
    public func clamped(to other: ByteRange) -> ByteRange {
        let start = min(max(offset, other.offset), other.end)
        return ByteRange(start..<max(start, min(end, other.end)))
    }

    @inlinable
    public func overlaps(_ other: ByteRange) -> Bool {
        offset < other.end && other.offset < end && !isEmpty && !other.isEmpty
    }

    @inlinable
    public func contains(_ other: ByteRange) -> Bool {
        offset <= other.offset && other.end <= end
    }

    /// The smallest range of whole `unit`s that holds this one. `unit` is a power of two.
    @inlinable
    public func expanded(toMultipleOf unit: UInt64) -> ByteRange {
        ByteRange(offset.roundedDown(toMultipleOf: unit)..<end.roundedUp(toMultipleOf: unit))
    }

    /// The first `count` bytes, or all of them when there are fewer.
    @inlinable
    public func prefix(_ count: UInt64) -> ByteRange {
        ByteRange(offset: offset, length: min(count, length))
    }

    /// What is left after the first `count` bytes; empty when there are no more.
    @inlinable
    public func dropFirst(_ count: UInt64) -> ByteRange {
        let skipped = min(count, length)
        return ByteRange(offset: offset + skipped, length: length - skipped)
    }
}

extension ByteRange: Codable {
    private enum CodingKeys: CodingKey { case offset, length }

    /// Another process may say anything; a range ends within 64 bits.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        offset = try values.decode(UInt64.self, forKey: .offset)
        length = try values.decode(UInt64.self, forKey: .length)
        guard !offset.addingReportingOverflow(length).overflow else {
            throw DecodingError.dataCorruptedError(
                forKey: .length, in: values, debugDescription: "the range ends beyond 64 bits")
        }
    }
}

extension ByteRange: CustomStringConvertible {
    public var description: String { "\(length) bytes at offset \(offset)" }
}

extension UInt64 {
    /// This number, or the next lower multiple of `unit`, a power of two.
    @inlinable
    public func roundedDown(toMultipleOf unit: UInt64) -> UInt64 {
        precondition(unit.nonzeroBitCount == 1, "a unit of rounding must be a power of two")
        return self & ~(unit - 1)
    }

    /// This number, or the next higher multiple of `unit`, a power of two; traps beyond 64 bits.
    @inlinable
    public func roundedUp(toMultipleOf unit: UInt64) -> UInt64 {
        (self + (unit - 1)).roundedDown(toMultipleOf: unit)
    }

    /// This number of units makes how many of `divisor`, the last one perhaps not full.
    @inlinable
    public func dividedRoundingUp(by divisor: UInt64) -> UInt64 {
        self / divisor + (self % divisor == 0 ? 0 : 1)
    }
}
