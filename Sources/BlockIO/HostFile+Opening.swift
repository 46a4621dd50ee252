internal import CBlockIO
internal import Glibc

extension HostFile {
    /// A descriptor that was examined and locked, on its way to becoming a `HostFile`. All of it blocks.
    struct Opened: Sendable {
        let descriptor: Int32
        let identity: FileIdentity
        let aliases: [FileIdentity]
        let isBlockDevice: Bool
        let size: UInt64
        /// A power of two.
        let granularity: UInt64
        /// On a file system that keeps its files on a disk of this host.
        let isLocal: Bool
        /// Of what direct transfers are multiples, in bytes; nil: they go through the page cache.
        let directUnit: UInt64?
        let lock: ImageLock?

        init(path: String, readOnly: Bool, direct leastUnit: UInt64?, lock: Lock?) throws(BlockError) {
            guard !path.isEmpty, !path.utf8.contains(0) else {
                throw BlockError(.invalid, "Couldn't open \"\(path)\": it is empty or contains a NUL byte")
            }
            // O_NONBLOCK: a FIFO or a tape must not make us wait for somebody.
            let flags = (readOnly ? O_RDONLY : O_RDWR) | O_NONBLOCK | O_NOCTTY
            let descriptor = cblockio_open(path, flags, 0)
            guard descriptor >= 0 else {
                let purpose = readOnly ? "" : " for writing"
                throw BlockError("Couldn't open \(path)\(purpose)", errno: -descriptor)
            }
            try self.init(adopting: descriptor, name: path, readOnly: readOnly, direct: leastUnit, lock: lock)
        }

        /// Closes `descriptor` when it throws.
        init(
            adopting descriptor: Int32, name: String, readOnly: Bool, direct leastUnit: UInt64? = nil,
            lock: Lock?
        ) throws(BlockError) {
            do throws(BlockError) {
                try self.init(
                    examining: descriptor, name: name, readOnly: readOnly, direct: leastUnit, lock: lock)
            } catch {
                _ = cblockio_close(descriptor)
                throw error
            }
        }

        private init(
            examining descriptor: Int32, name: String, readOnly: Bool, direct leastUnit: UInt64?, lock: Lock?
        ) throws(BlockError) {
            self.descriptor = descriptor
            var status = stat()
            try Self.check(cblockio_stat(descriptor, &status), "Couldn't examine \(name)")
            switch status.st_mode & S_IFMT {
            case S_IFREG: isBlockDevice = false
            case S_IFBLK: isBlockDevice = true
            case let other:
                throw BlockError(
                    .unsupported,
                    "Couldn't use \(name): it is \(Self.describe(other)), not a regular file or a block device"
                )
            }
            try Self.checkAccess(descriptor, name: name, readOnly: readOnly)
            (identity, aliases) = FileIdentity.of(status, descriptor)
            if let lock {
                self.lock = try ImageLock.acquire(
                    descriptor, holding: lock.holding, unsharing: lock.unsharing, path: name)
            } else {
                self.lock = nil
            }
            // Not before: who had it may have changed it until then.
            if isBlockDevice {
                var bytes: UInt64 = 0
                try Self.check(
                    cblockio_block_device_size(descriptor, &bytes), "Couldn't find the size of \(name)")
                size = bytes
            } else {
                try Self.check(cblockio_stat(descriptor, &status), "Couldn't examine \(name)")
                size = UInt64(max(0, status.st_size))
            }
            isLocal = isBlockDevice || cblockio_is_local(descriptor)
            if let leastUnit {
                directUnit = max(leastUnit, try HostFile.goDirect(descriptor, size: size, name: name))
            } else {
                directUnit = nil
            }
            let block = UInt64(max(0, status.st_blksize))
            granularity = block.nonzeroBitCount == 1 && block >= 512 && block <= 65536 ? block : 4096
        }

        /// O_APPEND would ignore our offsets, and io_uring would not wait for a disk with O_NONBLOCK.
        private static func checkAccess(_ descriptor: Int32, name: String, readOnly: Bool) throws(BlockError)
        {
            let flags = cblockio_flags(descriptor)
            try check(flags, "Couldn't examine \(name)")
            let access = flags & O_ACCMODE
            guard access == O_RDWR || (readOnly && access == O_RDONLY) else {
                let purpose = readOnly ? "reading" : "reading and writing"
                throw BlockError(.invalid, "Couldn't use \(name): it is not open for \(purpose)")
            }
            try check(
                cblockio_set_flags(descriptor, flags & ~(O_APPEND | O_NONBLOCK)),
                "Couldn't set up \(name)")
        }

        private static func check(_ result: Int32, _ what: String) throws(BlockError) {
            guard result >= 0 else { throw BlockError(what, errno: -result) }
        }

        private static func describe(_ kind: mode_t) -> String {
            switch kind {
            case S_IFDIR: "a directory"
            case S_IFIFO: "a FIFO"
            case S_IFCHR: "a character device"
            case S_IFSOCK: "a socket"
            default: "something else"
            }
        }
    }
}
