/// How an image file's bytes make up a disk.
package enum ImageFormat: String, Sendable, CaseIterable, Codable {
    /// The disk's bytes and nothing else.
    case raw
    /// QEMU's copy-on-write format, versions 2 and 3.
    case qcow2
}
