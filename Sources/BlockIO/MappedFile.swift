internal import CBlockIO
internal import Glibc
internal import Synchronization

/// A file that is used as memory, so that what was stored in it outlives a killed process.
///
/// It lies on tmpfs, where nothing is ever written back and a store costs what a store costs. A file's space is
/// allocated by `allocate` before anything is stored there: a store into a place without space ends the process when
/// there is no memory left for it. What several stores make up together is published by one last `store` of an
/// aligned word, which a killed process has either done or not.
///
/// Methods that take a path or change the file block: call them inside `IOEngine.blocking`.
package final class MappedFile: Sendable {
    package let path: String
    /// The file's length in bytes, which never changes.
    package let length: Int
    /// What it is, whatever its name.
    package let identity: FileIdentity
    // SAFETY: the mapping's address is constant and it is unmapped when no reference to this object is left. Whoever
    // shares the memory among threads keeps their accesses apart; `store` and `load` are atomic.
    private nonisolated(unsafe) let start: UnsafeMutableRawPointer
    let descriptor: Int32
    private let isRemoved = Atomic(false)

    /// All of it. Valid as long as this object lives; without space (see `allocate`) only reading is safe.
    package var bytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: start, count: length)
    }

    /// Makes a new file of `length` bytes of zeroes, readable by its owner only, of which the first `allocated` have
    /// space.
    ///
    /// Throws `.alreadyExists` when there is one of that name (a link, too), `.noSpace` when there is none; nothing
    /// is left then.
    package static func create(
        _ path: String, length: Int, allocated: Int = 0
    ) throws(BlockError) -> MappedFile {
        let what = "Couldn't make \(path)"
        guard length > 0, allocated >= 0, allocated <= length else {
            throw BlockError(
                .invalid, "\(what): \(length) bytes, of which \(allocated) have space, are no size")
        }
        let descriptor = cblockio_open_mapping(path, 1)
        guard descriptor >= 0 else { throw BlockError(what, errno: -descriptor) }
        do throws(BlockError) {
            let result = cblockio_truncate(descriptor, UInt64(length))
            guard result == 0 else { throw BlockError(what, errno: -result) }
            let file = try MappedFile(descriptor, path: path, what)
            try file.allocate(0..<allocated)
            return file
        } catch {
            // The error that led here is the one to tell; what is left of the file is empty.
            _ = cblockio_unlink(path)
            throw error
        }
    }

    /// Opens an existing file, as long as it is. Throws `.notFound`; `.invalid` for a link, `.unsupported` for what is
    /// not a regular file, `.corrupt` for one without bytes.
    package static func open(_ path: String) throws(BlockError) -> MappedFile {
        let what = "Couldn't open \(path)"
        let descriptor = cblockio_open_mapping(path, 0)
        guard descriptor >= 0 else { throw BlockError(what, errno: -descriptor) }
        return try MappedFile(descriptor, path: path, what)
    }

    /// Closes `descriptor` when it throws.
    private init(_ descriptor: Int32, path: String, _ what: String) throws(BlockError) {
        do throws(BlockError) {
            var status = stat()
            var result = cblockio_stat(descriptor, &status)
            guard result == 0 else { throw BlockError(what, errno: -result) }
            guard status.st_mode & S_IFMT == S_IFREG else {
                throw BlockError(.unsupported, "\(what): it is not a regular file")
            }
            guard status.st_size > 0, let length = Int(exactly: status.st_size) else {
                throw BlockError(.corrupt, "\(what): it has \(status.st_size) bytes")
            }
            var address: UnsafeMutableRawPointer?
            result = cblockio_map(descriptor, length, &address)
            guard result == 0, let address else { throw BlockError(what, errno: -result) }
            self.path = path
            self.descriptor = descriptor
            self.length = length
            identity = FileIdentity.of(status, descriptor).0
            start = address
        } catch {
            _ = cblockio_close(descriptor)
            throw error
        }
    }

    deinit {
        // Neither can fail for what we made ourselves.
        _ = cblockio_unmap(start, length)
        _ = cblockio_close(descriptor)
    }

    /// Takes space for a part of the file, so that a store there cannot fail; what it held stays. Throws `.noSpace`.
    package func allocate(_ range: Range<Int>) throws(BlockError) {
        precondition(range.lowerBound >= 0 && range.upperBound <= length, "space lies in its file")
        guard !range.isEmpty else { return }
        let result = cblockio_fallocate(descriptor, 0, UInt64(range.lowerBound), UInt64(range.count))
        guard result == 0 else {
            throw BlockError("Couldn't take space for \(range.count) bytes of \(path)", errno: -result)
        }
    }

    /// Gives back the space of whole pages of a part, which is zeroes afterwards.
    package func deallocate(_ range: Range<Int>) throws(BlockError) {
        precondition(range.lowerBound >= 0 && range.upperBound <= length, "space lies in its file")
        guard !range.isEmpty else { return }
        let result = cblockio_fallocate(
            descriptor, cblockio_punch_hole | cblockio_keep_size, UInt64(range.lowerBound),
            UInt64(range.count))
        guard result == 0 else {
            throw BlockError("Couldn't give back \(range.count) bytes of \(path)", errno: -result)
        }
    }

    /// What its file system has, in bytes; nil where that cannot be told. Of tmpfs, which does not block.
    package func space() -> (total: UInt64, available: UInt64)? {
        var status = statvfs()
        guard fstatvfs(descriptor, &status) == 0 else { return nil }
        let unit = UInt64(status.f_frsize)
        return (UInt64(status.f_blocks) * unit, UInt64(status.f_bavail) * unit)
    }

    /// Stores a number in one piece, after everything that was stored before it. `position` is a multiple of 8.
    package func store(_ value: UInt64, at position: Int) {
        precondition(position % 8 == 0 && position >= 0 && position <= length - 8, "a word lies in its file")
        cblockio_store_release(start + position, value)
    }

    /// The number at `position`, a multiple of 8, and what was stored before it is seen as well.
    package func load(at position: Int) -> UInt64 {
        precondition(position % 8 == 0 && position >= 0 && position <= length - 8, "a word lies in its file")
        return cblockio_load_acquire(start + position)
    }

    /// Removes the name; the memory stays until the last reference goes. Nothing happens the second time.
    package func remove() throws(BlockError) {
        guard !isRemoved.exchange(true, ordering: .acquiringAndReleasing) else { return }
        let result = cblockio_unlink(path)
        guard result == 0 || result == -ENOENT else {
            throw BlockError("Couldn't remove \(path)", errno: -result)
        }
    }
}
