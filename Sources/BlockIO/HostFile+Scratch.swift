internal import CBlockIO
internal import Glibc

/// Files of our own that nobody else uses: made, measured and removed.
extension HostFile {
    /// Makes an empty file, readable by its owner only, open for reading and writing. Throws `.alreadyExists`.
    package static func create(_ path: String, on engine: any IOEngine) async throws(BlockError) -> HostFile {
        let descriptor = await engine.blocking {
            cblockio_open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
        }
        guard descriptor >= 0 else { throw BlockError("Couldn't make \(path)", errno: -descriptor) }
        return try await HostFile(
            adopting: descriptor, name: path, readOnly: false, growable: true, engine: engine)
    }

    /// Whether the file system gives back the space of a part of this file, which has at least a page.
    package func givesBackSpace() async -> Bool {
        let range = ByteRange(offset: 0, length: min(size, 4096))
        guard !range.isEmpty else { return true }
        // An error says that it does not, whatever it was.
        guard (try? await discard(range)) != nil else { return false }
        return state.value.canPunchHoles
    }

    /// Removes a name: 0 or a negated errno. Blocks.
    package static func unlink(_ path: String) -> Int32 { cblockio_unlink(path) }

    /// What the file system of `path` has, in bytes, for us who may not take what is kept for root; nil when it can't be
    /// told. Blocks.
    package static func space(at path: String) -> (total: UInt64, available: UInt64)? {
        var status = statvfs()
        guard statvfs(path, &status) == 0 else { return nil }
        let unit = UInt64(status.f_frsize)
        return (UInt64(status.f_blocks) * unit, UInt64(status.f_bavail) * unit)
    }
}
