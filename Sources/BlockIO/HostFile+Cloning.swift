internal import CBlockIO
internal import Glibc

/// A file whose blocks another one is to share. It is known again by what it is: its path may lead elsewhere by now.
package struct CloneSource: Sendable, Hashable, Codable {
    package var path: String
    package var identity: FileIdentity

    package init(path: String, identity: FileIdentity) {
        self.path = path
        self.identity = identity
    }
}

extension HostFile {
    /// Makes `range` share its blocks with the same range of `source`, which is open, for reading only, for that long.
    /// The range begins at a block's start, and ends at one or at the end of both files.
    ///
    /// It is a read of the source and a write here, of each part at some time before it returns. While a part is shared
    /// the file system lets nobody write to the source. Throws `.unsupported` when it cannot be: then nothing has changed. After
    /// another error the range holds what it held, or what the source has, in parts.
    package func clone(_ range: ByteRange, from source: CloneSource) async throws(BlockError) {
        try check(range, to: "clone")
        guard !isReadOnly else {
            throw BlockError(.invalid, "Couldn't clone to \(name): it is open for reading only", range: range)
        }
        state.value.needsFullFlush = true
        beginChange()
        defer { endChange() }
        let (descriptor, name) = (descriptor, name)
        let cloned: Result<Void, BlockError> = await engine.blocking {
            Result { () throws(BlockError) in try Self.clone(range, from: source, to: descriptor, name) }
        }
        try cloned.get()
    }

    private static func clone(
        _ range: ByteRange, from source: CloneSource, to descriptor: Int32, _ name: String
    ) throws(BlockError) {
        // It is another file's turn if the path leads elsewhere by now: that one may be anything.
        let opened = cblockio_open(source.path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0)
        guard opened >= 0 else { throw refusal(source, name, why: BlockError.describe(errno: -opened)) }
        // It was only read.
        defer { _ = cblockio_close(opened) }
        guard try FileIdentity.of(opened, path: source.path).identity == source.identity else {
            throw refusal(source, name, why: "the path leads to another file by now")
        }
        // A block first: where that cannot be, nothing is written back for nothing.
        let first = cblockio_clone_range(descriptor, opened, range.offset, min(range.length, 4096))
        switch -first {
        case 0, EINVAL: break  // Of other blocks the file system may say that.
        case EOPNOTSUPP, ENOSYS, ENOTTY, EXDEV:
            throw refusal(source, name, why: BlockError.describe(errno: -first))
        default: throw failure(range, source, name, first)
        }
        // The file system does that, too, but holds up whoever writes to the source. An error is told once: the file system would
        // share what is on the disk instead of what the cache has.
        let written = cblockio_sync_file_range(
            opened, range.offset, range.length, cblockio_range_write_and_wait)
        guard written == 0 else { throw failure(range, source, name, written) }
        var rest = range
        while !rest.isEmpty {
            // A piece takes the file system some milliseconds at most; in between writers have their turn.
            let end = cblockio_extents_end(opened, rest.offset, rest.length, extentsAtOnce)
            let length = end > Int64(rest.offset) ? min(UInt64(end) - rest.offset, rest.length) : rest.length
            let result = cblockio_clone_range(descriptor, opened, rest.offset, length)
            guard result == 0 else { throw failure(range, source, name, result) }
            rest = rest.dropFirst(length)
        }
    }

    /// How many extents of the source are shared in one step.
    private static let extentsAtOnce: UInt32 = 512

    private static func failure(
        _ range: ByteRange, _ source: CloneSource, _ name: String, _ result: Int32
    ) -> BlockError {
        var error = BlockError(
            "Couldn't clone \(range) of \(source.path) to \(name)", errno: -result, range: range)
        // Part of it may have been cloned, whatever the system says.
        if error.code == .unsupported { error.code = .inputOutput }
        return error
    }

    private static func refusal(_ source: CloneSource, _ name: String, why: String) -> BlockError {
        BlockError(.unsupported, "\(name) cannot share the blocks of \(source.path): \(why)")
    }
}
