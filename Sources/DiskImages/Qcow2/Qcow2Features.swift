/// The feature bits of a qcow2 header that we know (qcow2.txt, "Header", bytes 72 to 95).
enum Qcow2Features {
    enum Incompatible {
        static let dirty: UInt64 = 1 << 0
        static let corrupt: UInt64 = 1 << 1
        static let externalData: UInt64 = 1 << 2
        static let compressionType: UInt64 = 1 << 3
        static let extendedL2: UInt64 = 1 << 4
        static let known = dirty | corrupt | externalData | compressionType | extendedL2
    }

    enum Compatible {
        static let lazyRefcounts: UInt64 = 1 << 0
    }

    enum Autoclear {
        static let bitmaps: UInt64 = 1 << 0
        static let rawExternalData: UInt64 = 1 << 1
        /// Ours: there is a journal of mappings that this image does not have yet. Every other program that writes the
        /// image clears it, as it does all bits of this field that it does not know.
        static let journal: UInt64 = 1 << 63
    }

    /// What the feature name table of an image may say about a bit.
    struct Name: Sendable, Hashable {
        /// 0 incompatible, 1 compatible, 2 autoclear.
        var type: UInt8
        var bit: UInt8
        var text: String
    }
}
