package import BlockIO

/// Tells a file's format by its first bytes, as far as that is unambiguous.
///
/// Only formats with a magic number can be told; everything else counts as raw. A guest can write any magic number
/// into a raw disk, so whoever probes must remember the answer and never ask again (DESIGN.md §7, item 8).
package enum ImageProbe {
    /// How many bytes of a file's start are wanted; a shorter file has fewer.
    package static let length = 512

    /// The format of a file that starts with `bytes`.
    ///
    /// Throws `.unsupported`, naming the format, for one that has to be told and that we do not read.
    package static func probe(_ bytes: UnsafeRawBufferPointer, path: String) throws(BlockError) -> ImageFormat
    {
        guard let name = looksLikeOtherFormat(bytes) else { return .raw }
        if name == ImageFormat.qcow2.rawValue { return .qcow2 }
        throw BlockError(
            .unsupported,
            "Couldn't open \(path): it looks like an image of format \(name), which is not supported; "
                + "say the format (raw) if its bytes are the disk's own")
    }

    /// The name of the format other than raw that a disk with these first bytes would be taken for, or nil.
    package static func looksLikeOtherFormat(_ firstBytes: UnsafeRawBufferPointer) -> String? {
        for magic in magics where magic.isFound(in: firstBytes) { return magic.format }
        return nil
    }

    private struct Magic {
        var format: String
        var position = 0
        var bytes: [UInt8]

        init(_ format: String, at position: Int = 0, _ bytes: [UInt8]) {
            self.format = format
            self.position = position
            self.bytes = bytes
        }

        init(_ format: String, _ text: StaticString) {
            self.init(format, text.withUTF8Buffer(Array.init))
        }

        func isFound(in start: UnsafeRawBufferPointer) -> Bool {
            position + bytes.count <= start.count
                && start[position..<position + bytes.count].elementsEqual(bytes)
        }
    }

    private static let magics = [
        Magic("qcow2", [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 2]),
        Magic("qcow2", [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]),
        Magic("qcow", [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 1]),
        // A later version of qcow2 that nobody has seen yet; its own reader is to say so.
        Magic("qcow2", [0x51, 0x46, 0x49, 0xfb]),
        Magic("vmdk", "KDMV"),
        Magic("vmdk", "COWD"),
        Magic("vmdk", "# Disk DescriptorFile"),
        Magic("vdi", at: 64, [0x7f, 0x10, 0xda, 0xbe]),
        Magic("vhdx", "vhdxfile"),
        Magic("vpc", "conectix"),
        Magic("qed", [0x51, 0x45, 0x44, 0]),
        Magic("luks", [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]),
        Magic("parallels", "WithoutFreeSpace"),
        Magic("parallels", "WithouFreSpacExt"),
        Magic("dmg", "koly"),
        Magic("bochs", "Bochs Virtual HD Image"),
        Magic("cloop", "#!/bin/sh\n#V2.0 Format\n"),
    ]
}
