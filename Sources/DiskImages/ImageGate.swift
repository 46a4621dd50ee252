internal import BlockIO

/// Decides about every file that is opened because an image names it rather than because somebody asked for it.
///
/// A guest or whoever made an image may have written any path into it, so no backing file is opened before the
/// gate has let its path pass.
package struct ImageGate: Sendable {
    private let allows: @Sendable (String) throws(BlockError) -> Void

    /// `allows` gets an absolute path with all links resolved, and throws (`.denied`) to refuse it.
    package init(allows: @escaping @Sendable (String) throws(BlockError) -> Void) {
        self.allows = allows
    }

    /// Lets everything pass: for what an operator opens on the agent's own command line.
    package static let open = ImageGate { (_: String) throws(BlockError) in }

    /// Refuses everything: for images that must stand alone.
    package static let closed = ImageGate { (path: String) throws(BlockError) in
        throw BlockError(.denied, "Couldn't open \(path): backing files are not allowed here")
    }

    func check(_ resolvedPath: String) throws(BlockError) { try allows(resolvedPath) }
}
