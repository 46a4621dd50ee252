internal import CBlockIO
internal import Glibc

/// Writing past the page cache.
///
/// What a backup writes nobody reads soon: in the page cache it is copied once more and drives out what guests need. Large,
/// aligned writes can go from their buffer to the disk; small ones are better gathered by the cache.
///
/// The kernel keeps the two coherent in regular files, page by page: before and after a direct write it drops what the cache
/// has of its range. So no page is written both ways at once, and no read brings more into the cache than it asks for: pages
/// that lie in one large folio with those of a direct write could not be dropped. Block devices are not kept coherent.
extension HostFile {
    /// A second descriptor of the file whose writes go to the disk; closed with the last reference.
    final class Bypass: Sendable {
        let descriptor: Int32

        init(_ descriptor: Int32) { self.descriptor = descriptor }

        // An error has nobody to go to: what was written to it has been waited for, and the file is flushed by itself.
        deinit { _ = cblockio_close(descriptor) }
    }

    /// Of what offset, length and memory of direct writes are multiples, in bytes: pages of the cache, and what every disk takes.
    private static let unit: UInt64 = 4096
    /// The shortest write for which the disk is asked at once, in bytes.
    private static let leastLength: UInt64 = 32 << 10

    /// Lets large writes bypass the page cache from now on, those of `writePastCache` only or `always`, where file system, disk and
    /// engine can do that; where they cannot, nothing changes. For a file that is locked against all others (`.all`): a write
    /// that is on its way when this process ends holds these locks until it has ended. On the engine.
    package func bypassCache(always: Bool = true) async {
        state.value.bypassesAlways = always
        guard engine.writesAsynchronously, isLocal, !isBlockDevice, !isReadOnly, directUnit == nil,
            state.value.bypass == nil
        else { return }
        let descriptor = descriptor
        state.value.bypass = await engine.blocking { Self.openBypass(of: descriptor) }
    }

    private static func openBypass(of descriptor: Int32) -> Bypass? {
        var (offset, memory): (UInt32, UInt32) = (0, 0)
        guard cblockio_direct_alignment(descriptor, &offset, &memory) == 0, offset <= unit, memory <= unit
        else {
            return nil
        }
        guard cblockio_read_without_ahead(descriptor) == 0 else { return nil }
        let second = cblockio_open_direct(descriptor)
        guard second >= 0 else { return nil }
        do throws(BlockError) {
            try ImageLock.share(second, holding: .all, unsharing: .all)
        } catch {
            _ = cblockio_close(second)
            return nil
        }
        return Bypass(second)
    }

    /// How many of the bytes to be written from `address` to `range` bypass the page cache, from the first on; 0 for none.
    func directLength(_ range: ByteRange, _ address: UnsafeRawPointer?, past: Bool = false) -> UInt64 {
        guard past ? canWritePastCache : bypassesCache, range.length >= Self.leastLength,
            range.offset % Self.unit == 0,
            UInt64(UInt(bitPattern: address)) % Self.unit == 0
        else { return 0 }
        return range.length.roundedDown(toMultipleOf: Self.unit)
    }

    /// Large writes bypass the page cache, as far as is known. On the engine.
    package var bypassesCache: Bool { canWritePastCache && state.value.bypassesAlways }

    package var canWritePastCache: Bool { state.value.bypass != nil }

    /// Whether a write of `range` from an aligned buffer leaves nothing in the page cache.
    package func bypassesCache(_ range: ByteRange) -> Bool {
        directLength(range, nil) == range.length
    }

    /// A direct write may hold the file while it is handed to the disk: of a file that is written both ways by our own choice the
    /// engine's thread must not wait for that.
    var mayHold: Bool { state.withState { $0.bypassing > 0 && !$0.bypassesAlways } }

    /// Writes past the page cache: a count or a negated errno; nil where that turns out to be refused, now and from now on.
    func writeDirectly(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) async -> Int? {
        guard let bypass = state.value.bypass else { return nil }
        state.value.bypassing += 1
        let count = await engine.write(bypass.descriptor, bytes, at: offset)
        state.value.bypassing -= 1
        withExtendedLifetime(bypass) {}
        guard count == Int(-EINVAL) || count == Int(-EOPNOTSUPP) else { return count }
        state.value.bypass = nil
        return nil
    }
}
