internal import BlockIO
internal import DiskImages

/// Where a target's file is and what names it has. All methods block.
final class TargetPlace: Sendable {
    /// A target's image and what is known of it.
    struct Image: Sendable {
        var device: any BlockDevice
        var format: ImageFormat
        var clusterSize: UInt64
        var readsAsZero: Bool
    }

    /// The cluster size of new qcow2 images in bytes.
    static let newClusterSize: UInt64 = 65536

    /// The target's true path.
    let path: String
    /// The names of a new target; nil for one that existed.
    private let new: NewTargetFile?
    let manifest: ManifestFile
    private let claims: FileClaims
    private let holder: FileClaims.Holder

    init(
        path: String, new: NewTargetFile?, manifest: ManifestFile, claims: FileClaims,
        holder: FileClaims.Holder
    ) {
        self.path = path
        self.new = new
        self.manifest = manifest
        self.claims = claims
        self.holder = holder
    }

    /// Gives a new target its name, and the manifest its own.
    func publish() throws(BlockError) {
        if let new { try new.publish(beside: manifest) } else { try manifest.publish() }
    }

    /// Removes a manifest that has not become one of a complete target.
    func discardManifest(keep: Bool) { manifest.discard(isTargetGone: new != nil && !keep) }

    /// Removes a new target; one that existed stays.
    func remove() {
        // Whoever gives a target up has a reason that was told already; an unfinished file names itself.
        try? new?.remove()
    }

    func release() { claims.release(holder) }
}
