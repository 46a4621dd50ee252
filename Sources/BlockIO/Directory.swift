internal import CBlockIO
internal import Glibc
internal import Synchronization

/// An open directory, in which names are looked up, made, renamed and removed.
///
/// Once it is open no link that is changed on the way to it leads anywhere else. All methods block: call them inside
/// `IOEngine.blocking`.
package final class Directory: Sendable {
    /// What a name stands for.
    package struct Entry: Sendable, Hashable {
        package enum Kind: String, Sendable, Hashable {
            case regular = "a regular file"
            case directory = "a directory"
            case link = "a symbolic link"
            case blockDevice = "a block device"
            case other = "a special file"
        }

        package var kind: Kind
        package var identity: FileIdentity
    }

    /// The directory's own path, without links, when it was opened.
    package let path: String
    private let descriptor: Int32

    /// Opens the directory at `path`, following links.
    package init(_ path: String) throws(BlockError) {
        let descriptor = cblockio_open_directory(path)
        guard descriptor >= 0 else {
            throw BlockError("Couldn't open the directory \(path)", errno: -descriptor)
        }
        do throws(BlockError) {
            self.path = try Self.path(of: descriptor, name: path)
        } catch {
            _ = cblockio_close(descriptor)
            throw error
        }
        self.descriptor = descriptor
    }

    deinit { _ = cblockio_close(descriptor) }

    /// The path, without links, of what a descriptor has open.
    package static func path(of descriptor: Int32, name: String) throws(BlockError) -> String {
        let capacity = Int(PATH_MAX)
        let (length, text) = withUnsafeTemporaryAllocation(of: CChar.self, capacity: capacity) { buffer in
            let length = cblockio_path_of(descriptor, buffer.baseAddress, buffer.count)
            let bytes = buffer.prefix(max(0, Int(length))).map { UInt8(bitPattern: $0) }
            return (length, String(validating: bytes, as: UTF8.self))
        }
        guard length >= 0 else {
            throw BlockError("Couldn't find the true path of \(name)", errno: Int32(-length))
        }
        guard let text, Int(length) < capacity else {
            throw BlockError(.invalid, "Couldn't use \(name): its true path is too long, or not UTF-8")
        }
        return text
    }

    /// The path of a name in this directory.
    package func path(of name: String) -> String { path == "/" ? "/" + name : path + "/" + name }

    /// What is called `name` is in this directory, and not somewhere below it or elsewhere.
    private func check(_ name: String) throws(BlockError) {
        guard !name.isEmpty, !name.hasSlash, !name.utf8.contains(0) else {
            throw BlockError(.invalid, "Couldn't use \(path(of: name)): \"\(name)\" is no name of a file")
        }
    }

    /// What `name` stands for, or nil when there is nothing (a followed link that leads nowhere included).
    package func entry(_ name: String, followingLinks: Bool = false) throws(BlockError) -> Entry? {
        try check(name)
        var status = stat()
        let result = cblockio_stat_in(descriptor, name, &status, followingLinks ? 1 : 0)
        if result == -ENOENT || (followingLinks && result == -ELOOP) { return nil }
        guard result == 0 else { throw BlockError("Couldn't examine \(path(of: name))", errno: -result) }
        let kind: Entry.Kind =
            switch status.st_mode & S_IFMT {
            case S_IFREG: .regular
            case S_IFDIR: .directory
            case S_IFLNK: .link
            case S_IFBLK: .blockDevice
            default: .other
            }
        return Entry(kind: kind, identity: FileIdentity.of(status, -1).identity)
    }

    /// Opens an existing file; the caller closes the descriptor. Without `followingLinks` a link is an error.
    package func open(
        _ name: String, readOnly: Bool, followingLinks: Bool = false
    ) throws(BlockError) -> Int32 {
        try check(name)
        let result = cblockio_open_in(
            descriptor, name, readOnly ? O_RDONLY : O_RDWR, followingLinks ? 1 : 0)
        guard result >= 0 else { throw BlockError("Couldn't open \(path(of: name))", errno: -result) }
        return result
    }

    /// Makes a file that must not exist, open for reading and writing; the caller closes the descriptor.
    package func create(_ name: String, mode: UInt32) throws(BlockError) -> Int32 {
        try check(name)
        let result = cblockio_create_in(descriptor, name, mode)
        guard result >= 0 else { throw BlockError("Couldn't make \(path(of: name))", errno: -result) }
        return result
    }

    /// Whether files can be made here. Of a file system on a disk of this host that is taken for granted; elsewhere (FUSE may
    /// show one file and nothing else) one of this name is made and removed again. Blocks.
    package func takesFiles(probing name: String) throws(BlockError) -> Bool {
        guard !cblockio_is_local(descriptor) else { return true }
        do throws(BlockError) {
            Descriptor.close(try create(name, mode: 0o600))
            try remove(name)
            return true
        } catch {
            switch error.errno {
            case EEXIST: return true
            case ENOSYS, EOPNOTSUPP, EROFS, EACCES, EPERM: return false
            default: throw error
            }
        }
    }

    /// Removes a name; it is no error when it is gone already.
    package func remove(_ name: String) throws(BlockError) {
        try check(name)
        let result = cblockio_remove_in(descriptor, name)
        guard result == 0 || result == -ENOENT else {
            throw BlockError("Couldn't remove \(path(of: name))", errno: -result)
        }
    }

    /// Gives what is called `old` the name `new`. What has that name is replaced, or is left alone and the error is
    /// `.alreadyExists`.
    package func rename(_ old: String, to new: String, replacing: Bool) throws(BlockError) {
        try check(old)
        try check(new)
        let result =
            replacing
            ? cblockio_rename_in(descriptor, old, new)
            : cblockio_rename_without_replacing_in(descriptor, old, new)
        guard result == 0 else {
            throw BlockError("Couldn't rename \(path(of: old)) to \(new)", errno: -result)
        }
    }

    /// Makes all changes of names durable.
    package func synchronize() throws(BlockError) {
        let result = cblockio_sync_directory(descriptor)
        guard result == 0 else { throw BlockError("Couldn't flush the directory \(path)", errno: -result) }
    }
}

/// A second descriptor of an open file, so that its locks outlive the closing of the first.
package final class LockKeeper: Sendable {
    private let descriptor: Int32
    private let isClosed = Atomic(false)

    package init(keeping descriptor: Int32, path: String) throws(BlockError) {
        self.descriptor = cblockio_duplicate(descriptor)
        guard self.descriptor >= 0 else {
            throw BlockError("Couldn't keep the locks of \(path)", errno: -self.descriptor)
        }
    }

    deinit { close() }

    /// Ends the locks, whoever else has the file open. Blocks; an error would leave nothing to do.
    package func close() {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        ImageLock.releaseAll(descriptor)
        _ = cblockio_close(descriptor)
    }
}

/// Open descriptors that nothing owns yet.
package enum Descriptor {
    /// Closes a descriptor that is not wanted after all; an error of that has nobody to go to.
    package static func close(_ descriptor: Int32) { _ = cblockio_close(descriptor) }

    /// Whether a file has no bytes and belongs to this process's user. Blocks.
    package static func isEmptyAndOwn(_ descriptor: Int32, path: String) throws(BlockError) -> Bool {
        var status = stat()
        let result = cblockio_stat(descriptor, &status)
        guard result == 0 else { throw BlockError("Couldn't examine \(path)", errno: -result) }
        return status.st_size == 0 && status.st_uid == geteuid()
    }

    /// When its file was made, in nanoseconds since 1970, to tell it from a later one of the same inode number; 0 where the
    /// file system does not know. Blocks.
    package static func birthTime(_ descriptor: Int32) -> UInt64 { cblockio_birth_time(descriptor) }
}
