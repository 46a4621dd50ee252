package import BlockIO

/// One file of a chain of images, as it was found when the chain was opened.
package struct ImageLayer: Sendable {
    /// Absolute, with all links resolved.
    package var path: String
    /// The same of what was opened, by its descriptor: another one if somebody has replaced it in between.
    package var openedPath: String
    package var format: ImageFormat
    package var identity: FileIdentity
    /// Other files through which the same bytes are reached: what a loop device lies on.
    package var aliases: [FileIdentity]
    /// In bytes.
    package var virtualSize: UInt64
    /// In bytes; 0 for raw.
    package var clusterSize: UInt64
    /// The backing file as the image records it: its name, relative perhaps, and format.
    package var backingName: String?
    package var backingFormat: String?
}

/// A drive's image and all its backing files, open and locked, seen as one device.
///
/// Every file is locked against writers and resizers other than us; see `takeWritePermission`.
package final class OpenImage: Sendable {
    /// The top of the chain. Reading goes down the chain; extents say what the top layer itself holds.
    package let device: any BlockDevice
    /// What is below the top image, for who wants to read only that, also while the top is written; nil when there is
    /// nothing. It is read on the same engine and closed with the image.
    package let backingDevice: (any BlockDevice)?
    /// The top image's format.
    package let format: ImageFormat
    /// True when `format` was found by probing rather than stated.
    package let wasProbed: Bool
    /// Top first; never empty.
    package let layers: [ImageLayer]
    /// A sentence for the log when a journal of an earlier agent was found: what became of it.
    package let recoveryNote: String?

    /// Nobody else may write.
    static let readerLock: HostFile.Lock = (holding: .consistentRead, unsharing: [.write, .resize])
    /// For an image that may be written later: there is one such owner. `writeUnchanged` is what tells owners of each
    /// other while nobody writes, since QEMU's readers neither have it nor mind it.
    static let ownerLock: HostFile.Lock = (
        holding: [.consistentRead, .writeUnchanged], unsharing: [.write, .resize, .writeUnchanged]
    )

    private let top: HostFile
    private let writeRefusal: BlockError?

    init(
        device: any BlockDevice, backingDevice: (any BlockDevice)?, format: ImageFormat, wasProbed: Bool,
        layers: [ImageLayer], top: HostFile, writeRefusal: BlockError?, recoveryNote: String?
    ) {
        self.device = device
        self.backingDevice = backingDevice
        self.recoveryNote = recoveryNote
        self.format = format
        self.wasProbed = wasProbed
        self.layers = layers
        self.top = top
        self.writeRefusal = writeRefusal
    }

    /// Opens the image at `path` and its backing files on `engine`.
    ///
    /// With `format` nil the top file is probed. The top file is opened for writing unless `readOnly`, but nothing
    /// is written and others are told so until `takeWritePermission`. Every backing file passes `gate`. Throws
    /// `.notFound`, `.locked`, `.denied`, `.unsupported` or `.corrupt`, naming the file; nothing stays open then.
    ///
    /// `journalDirectory`, on tmpfs, is where a qcow2 image's changed mappings are kept while it is written, so that
    /// a killed agent loses nothing that it has answered. A journal found there is put into the image first (the one
    /// case in which opening writes); that needs the image to be open for writing, else `.denied`. Without a directory
    /// what was not flushed is lost with the agent.
    ///
    /// `examine` sees the top file when it is locked, and nothing has been written to it yet, replay included.
    ///
    /// `cache` is for all files of the chain; `.unsupported` where they cannot be used past the page cache.
    ///
    /// A raw image whose format was probed, here or (`isProbedRaw`) when it was first added, refuses guest requests
    /// that would make its first sector look like another format's.
    package static func open(
        _ path: String, format: ImageFormat?, readOnly: Bool, gate: ImageGate,
        cache: CacheMode = .writeback, journalDirectory: String? = nil, isProbedRaw: Bool = false,
        examine: @escaping @Sendable (HostFile) async -> Void = { _ in }, on engine: any IOEngine
    ) async throws(BlockError) -> OpenImage {
        let options = Qcow2Options(role: .drive, journalDirectory: journalDirectory)
        return try await open(
            path, format: format, readOnly: readOnly, cache: cache, gate: gate, options: options,
            isProbedRaw: isProbedRaw, examine: examine, on: engine)
    }

    /// Opens an image of `format` for reading, and not what it lies on: reading what it does not itself hold throws
    /// `.unsupported`. Throws otherwise as `open` does.
    package static func openLayer(
        _ path: String, format: ImageFormat, on engine: any IOEngine
    ) async throws(BlockError) -> OpenImage {
        try await engine.run { () async throws(BlockError) -> OpenImage in
            var opener = ChainOpener(
                gate: .closed, options: Qcow2Options(role: .drive), isProbedRaw: false, engine: engine)
            opener.isLayerOnly = true
            return try await opener.open(path, format: format, readOnly: true)
        }
    }

    static func open(
        _ path: String, format: ImageFormat?, readOnly: Bool, cache: CacheMode = .writeback,
        gate: ImageGate, options: Qcow2Options, isProbedRaw: Bool = false,
        examine: @escaping @Sendable (HostFile) async -> Void = { _ in },
        on engine: any IOEngine
    ) async throws(BlockError) -> OpenImage {
        try await engine.run { () async throws(BlockError) -> OpenImage in
            var opener = ChainOpener(
                gate: gate, options: options, isProbedRaw: isProbedRaw, examine: examine, engine: engine)
            opener.cache = cache
            return try await opener.open(path, format: format, readOnly: readOnly)
        }
    }

    /// Tells all other processes that this image is being written from now on; called before its first writer is
    /// let in.
    ///
    /// Throws `.locked` when another process has it open and does not allow that, `.unsupported` for an image that can
    /// be read but not written, and `.noSpace` when there is no room for its journal.
    package func takeWritePermission() async throws(BlockError) {
        if let writeRefusal { throw writeRefusal }
        guard !device.isReadOnly else {
            throw BlockError(.denied, "Couldn't lock \(top.name) for writing: it is open for reading only")
        }
        try await engine.run { () async throws(BlockError) in
            let lock = Self.ownerLock
            try await top.changeLock(holding: lock.holding.union(.write), unsharing: lock.unsharing)
            if let image = device as? Qcow2Image { try await image.prepareJournal() }
        }
    }

    /// From now on `times` hears of each change of the top file; nil: nobody does.
    package func noteChanges(in times: ChangeTimes?) async {
        await engine.run { top.noteChanges(in: times) }
    }

    /// Closes all files and gives up their locks. No request is in flight and none follows. A qcow2 image that was
    /// written is flushed first and its journal removed; after an error its files are closed all the same.
    package func close() async throws(BlockError) {
        try await engine.run { () async throws(BlockError) in try await device.close() }
    }

    private var engine: any IOEngine { device.engine }
}

/// Decides about every file that is opened because an image names it rather than because somebody asked for it.
///
/// A guest or whoever made an image may have written any path into it, so no backing file is opened before the
/// gate has let its path pass.
package struct ImageGate: Sendable {
    /// Throws why a file must not be opened.
    package typealias Decision = @Sendable (String) throws(BlockError) -> Void

    private let allows: Decision

    /// `allows` gets an absolute path with all links resolved, and throws (`.denied`) to refuse it.
    package init(allows: @escaping Decision) {
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
