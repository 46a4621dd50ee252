internal import BackupJobs
internal import BlockIO
internal import DiskImages

/// What is written beside a backup: of what it is, and what its content must be. docs/manifest.md has the format.
struct Manifest: Sendable, Hashable {
    enum State: String, Sendable, Hashable {
        /// The target is being written, or was when something went wrong.
        case partial
        case complete
    }

    /// What a backup lies on.
    struct Parent: Sendable, Hashable {
        var path: String
        var format: ImageFormat
        /// Of the backup that it is, if it has a manifest itself.
        var id: String?
    }

    /// Behind the target's name.
    static let suffix = ".manifest.json"
    static let version = 1
    /// How many missing ranges are listed.
    static let mostMissing = 65536

    var state = State.partial
    /// The backup's own, in no other manifest.
    var id: String
    var job: String
    var drive: String
    var target: String
    var format: ImageFormat
    var sync: BackupSync
    /// The drive's, in bytes.
    var size: UInt64
    /// Nanoseconds since 1970-01-01 UTC.
    var pointInTime: Int64
    var parent: Parent?
    /// Ranges of the drive that are not in the target; the first ones, if there are very many.
    var missing: [ByteRange] = []
    var missingBytes: UInt64 = 0
    /// A part of the backup was cloned: nobody has read it when it was made.
    var isCloned = false
    /// nil while the manifest is partial, and where a part was cloned.
    var content: ContentDigests?

    /// A new backup's identifier: a random UUID.
    static func makeID() -> String {
        var generator = SystemRandomNumberGenerator()
        let (high, low): (UInt64, UInt64) = (generator.next(), generator.next())
        let bits = (high & ~0xf000 | 0x4000, low & ~(3 << 62) | 2 << 62)
        let digits = Array(hex(bits.0) + hex(bits.1))
        let parts = [0..<8, 8..<12, 12..<16, 16..<20, 20..<32]
        return parts.map { String(digits[$0]) }.joined(separator: "-")
    }

    private static func hex(_ word: UInt64) -> String {
        let text = String(word, radix: 16)
        return String(repeating: "0", count: 16 - text.count) + text
    }
}

extension BackupSync {
    /// As it is written in manifests.
    var word: String { "\(self)" }

    init?(word: String) {
        guard let sync = [Self.full, .top, .none].first(where: { $0.word == word }) else { return nil }
        self = sync
    }
}
