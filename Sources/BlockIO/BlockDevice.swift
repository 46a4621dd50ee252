/// Anything with bytes, extents and alignment that can be read or written: a host file, an image, a chain.
///
/// A device belongs to one `IOEngine`; its methods are called on that engine's executor only (see
/// `IOEngine.run`) and complete there. Many requests may be in flight at once; overlapping ones are in no
/// order. A request lies within `size` (else `BlockError.invalid`) and needs no alignment unless `limits` says so.
package protocol BlockDevice: AnyObject, Sendable {
    /// A name for messages, usually the path.
    var name: String { get }
    /// The engine whose executor this device's methods run on.
    var engine: any IOEngine { get }
    /// The number of bytes that can be read. Fixed while the device is open.
    var size: UInt64 { get }
    var isReadOnly: Bool { get }
    var limits: BlockLimits { get }

    /// Fills `buffer` (exactly `range.length` bytes long) with the bytes of `range`.
    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError)

    /// Writes `buffer` (exactly `range.length` bytes long). It is durable after the next `flush`.
    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError)

    /// Whether `writePastCache` leaves nothing in the page cache.
    var canWritePastCache: Bool { get }

    /// Does what `write` does, of what nobody reads soon: past the page cache, where that can be. `range` and `buffer` lie at
    /// multiples of 4096 bytes.
    func writePastCache(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError)

    /// Does what `read` does in this step, when nothing has to be waited for; false when something has, or went wrong:
    /// `read` tells, and `buffer` may hold anything until then.
    func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool

    /// Whether its bytes have places of their own in a file that the page cache holds, on a file system that leaves pages alone
    /// for those who still read them: so that `fill` may do something.
    var fillsPipes: Bool { get }

    /// Whether `range` (not empty) is in the page cache, so that `fill` is likely to do it.
    func hasCached(_ range: ByteRange) -> Bool

    /// Fills an empty pipe with the pages of `range` (not empty), which are in the page cache, in this step; false, with the pipe
    /// empty, when they are not, or something went wrong: `read` tells.
    func fill(_ pipe: PagePipe, with range: ByteRange) -> Bool

    /// Begins what `read` does and calls `done` in a step of its own on the engine, when `buffer` is filled or is not. False when
    /// this cannot be begun in this step; then nothing is called.
    func beginRead(_ range: ByteRange, into buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void)
        -> Bool

    /// Does what `write` does in this step, when nothing has to be waited for; false when something has, or went wrong:
    /// `write` tells, and any part of `range` may have been written.
    func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool

    /// Short writes of `ranges` have come and are mostly made in this step: what has to be done before each of them can be done for
    /// all of them together. They lie in the device, may overlap, and need not come after all. The closure is called only where
    /// that is of use.
    func expectWrites(_ ranges: () -> [ByteRange])

    /// Begins what `write` does and calls `done` in a step of its own on the engine, when that is done, or is not: then any part of
    /// `range` may have been written. False when this cannot be begun in this step; then nothing is called.
    func beginWrite(
        _ range: ByteRange, from buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool

    /// Makes `range` read as zeroes; with `mayUnmap` its space may be given back.
    func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError)

    /// True when `writeZeroes` is expected to need less time than to write the zeroes would, whatever the range: a promise
    /// to nobody, of use to whom a quick answer is worth more than zeroes.
    func zeroesQuickly(mayUnmap: Bool) -> Bool

    /// Says that the contents of `range` are of no interest any more; what is read afterwards is either the old
    /// content or zeroes.
    func discard(_ range: ByteRange) async throws(BlockError)

    /// Makes all writes that completed before this call durable: data and the metadata that finds it.
    func flush() async throws(BlockError)

    /// An error in writing back what earlier writes have left with a cache: some of it may read as anything since. Told once, and
    /// without waiting for anything; nil when none is known of by now.
    func writebackFailure() -> BlockError?

    /// Describes the start of `range` (not empty): at least one extent, the first begins at `range.offset`, each
    /// next where the previous ended, none is empty, and none reaches beyond `range`. Fewer bytes than asked for may be
    /// described: ask again from where the answer ends. An error in finding out is an error; "unknown" is data.
    func extents(in range: ByteRange) async throws(BlockError) -> [Extent]

    /// Releases files and locks. No request is in flight and none follows. It flushes nothing, but for an image with
    /// metadata that lives as long as a guest writes it (`OpenImage`), which is brought to rest first.
    func close() async throws(BlockError)
}

/// What is known of a run of bytes without reading it.
package struct Extent: Sendable, Hashable {
    package var range: ByteRange
    /// All bytes are known to read as zero.
    package var isZero: Bool
    /// The top layer of a chain itself says what these bytes are (data or zeroes); false where a backing file or
    /// nothing does. Always true for a device without backing file that cannot tell.
    package var isAllocated: Bool

    package init(_ range: ByteRange, isZero: Bool, isAllocated: Bool) {
        self.range = range
        self.isZero = isZero
        self.isAllocated = isAllocated
    }
}

/// Sizes in bytes that requests to a device should respect.
package struct BlockLimits: Sendable, Hashable {
    /// Offsets and lengths must be multiples of this (the end of the device excepted); 1 for most devices.
    package var requestAlignment: UInt64
    /// Requests of multiples of this need no read-modify-write and allocate no more than they fill: an image's
    /// cluster, a file system's block.
    package var optimalGranularity: UInt64

    package init(requestAlignment: UInt64 = 1, optimalGranularity: UInt64 = 4096) {
        self.requestAlignment = requestAlignment
        self.optimalGranularity = optimalGranularity
    }
}

/// What has become of a transfer that was begun without a task.
package enum BegunEnd: Sendable {
    case done
    /// A part of it is still to be done, and nothing is wrong: `read` or `write` do it.
    case unfinished
    case failed(BlockError)
}

extension BlockDevice {
    /// The whole device.
    package var range: ByteRange { ByteRange(offset: 0, length: size) }

    package var canWritePastCache: Bool { false }

    package func writePastCache(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) {
        try await write(range, from: buffer)
    }

    package func readAtOnce(_ range: ByteRange, into buffer: IOSlice) -> Bool { false }

    package var fillsPipes: Bool { false }

    package func hasCached(_: ByteRange) -> Bool { false }

    package func fill(_: PagePipe, with _: ByteRange) -> Bool { false }
    package func beginRead(
        _ range: ByteRange, into buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool { false }

    package func beginWrite(
        _ range: ByteRange, from buffer: IOSlice, _ done: @escaping @Sendable (BegunEnd) -> Void
    ) -> Bool { false }

    /// Does what `read` does, for who has found that `readAtOnce` does not.
    package func readLater(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        let end = await withUnsafeContinuation { (caller: UnsafeContinuation<BegunEnd, Never>) in
            if !beginRead(range, into: buffer, { caller.resume(returning: $0) }) {
                caller.resume(returning: .unfinished)
            }
        }
        switch end {
        case .done: return
        case .unfinished: try await read(range, into: buffer)
        case .failed(let error): throw error
        }
    }

    package func writeAtOnce(_ range: ByteRange, from buffer: IOSlice) -> Bool { false }

    package func expectWrites(_: () -> [ByteRange]) {}

    package func zeroesQuickly(mayUnmap: Bool) -> Bool { false }

    package func writebackFailure() -> BlockError? { nil }

    /// Throws `BlockError.invalid` unless `range` lies within the device.
    package func check(_ range: ByteRange, to verb: String) throws(BlockError) {
        guard range.end <= size else {
            throw BlockError(
                .invalid, "Couldn't \(verb) \(range) of \(name): it has only \(size) bytes", range: range)
        }
    }
}
