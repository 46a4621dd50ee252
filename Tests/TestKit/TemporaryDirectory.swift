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

/// What went wrong in the machinery of a test, or was found by it.
package struct TestKitError: Error, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}
