internal import Foundation

/// A directory of a test's own, which goes away with everything in it when the last reference does.
package final class TemporaryDirectory: Sendable {
    /// Its absolute path, without links in it.
    package let path: String

    package init() throws {
        var template = Array("/tmp/drive-backup-test.XXXXXX".utf8CString)
        path = try template.withUnsafeMutableBufferPointer { buffer in
            guard let start = buffer.baseAddress, let made = mkdtemp(start) else {
                throw TestKitError("Couldn't make a temporary directory: error \(errno)")
            }
            return String(cString: made)
        }
    }

    // A directory that cannot be removed harms no test.
    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// The path of `name` in the directory; nothing is made.
    package func file(_ name: String) -> String { path + "/" + name }
}

/// Whether files in temporary directories can be read and written past the page cache: where the file system is known for it.
package let temporaryFilesTakeDirectTransfers: Bool = {
    // Of each mount: ... mount point ... - type ... (proc(5), /proc/PID/mountinfo); the last one of a place counts.
    let mounts = (try? String(contentsOfFile: "/proc/self/mountinfo", encoding: .utf8)) ?? ""
    var (type, length) = ("", 0)
    for mount in mounts.split(separator: "\n") {
        let words = mount.split(separator: " ")
        guard words.count > 4, let dash = words.firstIndex(of: "-"), dash + 1 < words.count else { continue }
        guard ["/", "/tmp"].contains(words[4]), words[4].count >= length else { continue }
        (type, length) = (String(words[dash + 1]), words[4].count)
    }
    return ["ext4", "xfs", "btrfs"].contains(type)
}()

/// What went wrong in the machinery of a test, or was found by it.
package struct TestKitError: Error, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}
