internal import CBlockIO
internal import Synchronization

/// Large writes past the page cache: what is written once and not read again needs no copy in memory, and no write-back.
extension HostFile {
    /// Memory, offset and length of a direct write are multiples of it: enough for all common disks.
    private static let directAlignment: UInt64 = 4096
    /// Shorter writes are quicker through the page cache, which joins them.
    private static let directMinimum: UInt64 = 64 << 10

    /// From now on large writes go past the page cache, where the file system can; others, and all elsewhere, are as before.
    package func preferDirectWrites() async {
        guard isLocal, !isReadOnly, direct.load(ordering: .relaxed) < 0 else { return }
        let descriptor = descriptor
        let opened = await engine.blocking { cblockio_open_direct(descriptor) }
        // Not every file system takes part, nor has every process a /proc.
        if opened >= 0 { direct.store(opened, ordering: .releasing) }
    }

    /// Whether a write of that range, from memory that is aligned, goes past the page cache.
    package func isWrittenDirectly(_ range: ByteRange) -> Bool {
        direct.load(ordering: .acquiring) >= 0 && !state.value.isDirectRefused
            && range.length >= Self.directMinimum
            && (range.offset | range.length) % Self.directAlignment == 0
    }

    /// The descriptor for a direct write of these bytes, if that is one.
    func directDescriptor(for bytes: UnsafeRawBufferPointer, at offset: UInt64) -> Int32? {
        guard UInt(bitPattern: bytes.baseAddress) % UInt(Self.directAlignment) == 0,
            isWrittenDirectly(ByteRange(offset: offset, length: UInt64(bytes.count)))
        else { return nil }
        return direct.load(ordering: .acquiring)
    }

    /// The disk wants something else of a direct write: there are none any more. The descriptor stays for those on their
    /// way.
    func giveUpDirectWrites() { state.value.isDirectRefused = true }

    /// Blocks.
    func closeDirect() {
        let direct = direct.exchange(-1, ordering: .acquiringAndReleasing)
        if direct >= 0 { _ = cblockio_close(direct) }
    }
}
