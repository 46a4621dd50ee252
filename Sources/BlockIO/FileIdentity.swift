internal import CBlockIO
internal import Glibc

/// What a file is, whatever it is called: equal for two paths, links or descriptors of the same file or device.
package struct FileIdentity: Sendable, Hashable, Codable {
    private enum Kind: String, Sendable, Hashable, Codable { case file, blockDevice }

    private let kind: Kind
    /// The file system's device number; a block device's own.
    package let device: UInt64
    /// The file's inode number; 0 for a block device.
    package let inode: UInt64

    /// A regular file's (or any other object's) identity.
    package init(fileOn device: UInt64, inode: UInt64) {
        kind = .file
        self.device = device
        self.inode = inode
    }

    /// A block device's identity, which is its number: two device nodes may name the same one.
    package init(blockDevice number: UInt64) {
        kind = .blockDevice
        device = number
        inode = 0
    }

    /// The identity of an open file, and those of other files through which the same bytes are reached: what a
    /// loop device lies on. Blocks for a system call.
    package static func of(
        _ descriptor: Int32, path: String
    ) throws(BlockError) -> (identity: FileIdentity, aliases: [FileIdentity]) {
        var status = stat()
        let result = cblockio_stat(descriptor, &status)
        guard result == 0 else { throw BlockError("Couldn't examine \(path)", errno: -result) }
        return of(status, descriptor)
    }

    /// The identity of the file that `path` leads to now; nil when it leads nowhere. Blocks.
    package static func of(path: String) -> FileIdentity? {
        var status = stat()
        return stat(path, &status) == 0 ? of(status, -1).identity : nil
    }

    static func of(
        _ status: stat, _ descriptor: Int32
    ) -> (identity: FileIdentity, aliases: [FileIdentity]) {
        guard status.st_mode & S_IFMT == S_IFBLK else {
            return (FileIdentity(fileOn: UInt64(status.st_dev), inode: UInt64(status.st_ino)), [])
        }
        let identity = FileIdentity(blockDevice: UInt64(status.st_rdev))
        var device: UInt64 = 0
        var inode: UInt64 = 0
        // Any failure says that this is no loop device in use: then there is no file behind it.
        guard cblockio_loop_backing(descriptor, &device, &inode) == 0 else { return (identity, []) }
        return (identity, [FileIdentity(fileOn: device, inode: inode)])
    }
}

extension FileIdentity: CustomStringConvertible {
    package var description: String {
        switch kind {
        case .file: "inode \(inode) on device \(device)"
        case .blockDevice: "block device \(device)"
        }
    }
}
