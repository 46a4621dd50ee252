package import BlockIO

/// Images that backups are written to. Everything runs on the engine of the file, which belongs to the device when it
/// worked, and stays the caller's to close after an error.
package enum TargetImage {
    /// An existing image, checked and ready to be written.
    package struct Existing: Sendable {
        package var device: any BlockDevice
        package var format: ImageFormat
        /// In bytes; a raw file's own size.
        package var virtualSize: UInt64
        /// In bytes; 0 for raw.
        package var clusterSize: UInt64
        /// As recorded in the image; it is not opened.
        package var backingName: String?
        package var backingFormat: String?
        /// The format was not stated; it was found by probing.
        package var wasProbed: Bool
    }

    /// Makes a new image of `size` bytes in `file`, which is empty, open for writing and locked, and which the
    /// device takes over.
    ///
    /// A qcow2 disk is a multiple of 512 bytes long: its device's size is `size` rounded up, and a write that ends
    /// at `size` leaves zeroes behind it. `backing` is recorded, not opened: what it holds is not
    /// readable through the device, and writes are to cover whole clusters (of the disk's end, what there is).
    /// Nothing is durable before `flush`. Throws `.unsupported` for raw with `backing`, `.invalid` for a cluster size
    /// that is no power of two between 512 and 2 MiB or too small for the size.
    package static func create(
        on file: HostFile, format: ImageFormat, size: UInt64, backing: (name: String, format: ImageFormat)?,
        clusterSize: UInt64 = 65536
    ) async throws(BlockError) -> any BlockDevice {
        let engine = file.engine
        return try await engine.run { () async throws(BlockError) -> any BlockDevice in
            switch format {
            case .raw:
                guard backing == nil else {
                    throw BlockError(
                        .unsupported, "Couldn't create \(file.name): a raw image cannot have a backing file")
                }
                try await file.setSize(size)
                return RawImage(file, isReadOnly: false, isNew: true)
            case .qcow2:
                return try await Qcow2Image.create(
                    on: file, contentSize: size, backing: backing, clusterSize: clusterSize)
            }
        }
    }

    /// Opens an existing image of `format`, nil to probe, for writing; `file` is taken over.
    ///
    /// Everything is checked here and nothing written before the first write. Throws `.corrupt` or
    /// `.unsupported` for images that cannot be written. The image's backing file is not opened.
    package static func openExisting(
        _ file: HostFile, format: ImageFormat?
    ) async throws(BlockError) -> Existing {
        try await openExisting(file, format: format, options: Qcow2Options())
    }

    static func openExisting(
        _ file: HostFile, format: ImageFormat?, options: Qcow2Options
    ) async throws(BlockError) -> Existing {
        let engine = file.engine
        return try await engine.run { () async throws(BlockError) -> Existing in
            var found = format ?? .raw
            if format == nil { found = try await ImageFiles.probe(file) }
            switch found {
            case .raw:
                return Existing(
                    device: RawImage(file, isReadOnly: false), format: .raw, virtualSize: file.size,
                    clusterSize: 0, wasProbed: format == nil)
            case .qcow2:
                let header = try await ImageFiles.readHeader(file)
                if let obstacle = header.writeObstacle {
                    throw BlockError(.unsupported, "Couldn't open \(file.name) for writing: \(obstacle)")
                }
                let backing = header.backingName.map(Qcow2Image.Backing.notOpen) ?? .none
                // A drive may end in the middle of the last sector, whose rest then cannot be filled from a backing
                // file that is not open: it is left to the writer, who knows that it is zero.
                let contentSize = backing.isNone ? header.size : header.size - min(511, header.size)
                return Existing(
                    device: Qcow2Image(
                        file, header: header, backing: backing, isReadOnly: false, contentSize: contentSize,
                        options: options),
                    format: .qcow2, virtualSize: header.size, clusterSize: header.clusterSize,
                    backingName: header.backingName, backingFormat: header.backingFormat,
                    wasProbed: format == nil)
            }
        }
    }

    /// Takes up what `create` made with the same arguments in `file` and a process that was killed had begun to write;
    /// `file` is open for writing and locked, and nothing of that process can still land there.
    ///
    /// Everything for which a write or zeroing had returned is there; what was on its way is there, in parts, or not. A
    /// qcow2 image's refcounts are made to say what its tables say, so that clusters that were taken and not used yet
    /// are free again; a kill at any point of that, too, leaves an image that can be taken up. The device is as one of
    /// `create`: nothing is durable before `flush`.
    ///
    /// `.invalid` when it is another image, or one of another size (for raw: another length of the file); `.corrupt` or
    /// `.unsupported` when it is none, as a kill in `create` leaves it, or cannot be read.
    package static func resume(
        _ file: HostFile, format: ImageFormat, size: UInt64, backing: (name: String, format: ImageFormat)?,
        clusterSize: UInt64 = 65536
    ) async throws(BlockError) -> any BlockDevice {
        let engine = file.engine
        return try await engine.run { () async throws(BlockError) -> any BlockDevice in
            switch format {
            case .raw:
                guard backing == nil, file.size == size else {
                    throw BlockError(
                        .invalid,
                        "Couldn't go on with \(file.name): it has \(file.size) bytes, and the raw image that was begun "
                            + "there has \(size)")
                }
                return RawImage(file, isReadOnly: false)
            case .qcow2:
                return try await Qcow2Image.resume(
                    on: file, contentSize: size, backing: backing, clusterSize: clusterSize)
            }
        }
    }

    /// `openExisting` for an image that a process that was killed had begun to write; `file` is locked, and nothing of
    /// that process can still land there.
    ///
    /// As for `resume`, except that leaks stay in an image that has internal snapshots, compressed clusters or header
    /// extensions that are not known here. Otherwise refcounts are written here; a file that was cut short, or tables
    /// that cannot be right, are `.corrupt`.
    package static func resumeExisting(
        _ file: HostFile, format: ImageFormat
    ) async throws(BlockError) -> Existing {
        try await resumeExisting(file, format: format, options: Qcow2Options())
    }

    static func resumeExisting(
        _ file: HostFile, format: ImageFormat, options: Qcow2Options
    ) async throws(BlockError) -> Existing {
        let existing = try await openExisting(file, format: format, options: options)
        guard let image = existing.device as? Qcow2Image else { return existing }
        try await file.engine.run { () async throws(BlockError) in _ = try await image.dropLeaks() }
        return existing
    }

    /// Makes `range` of a raw image that was made or taken up here share the blocks of the same range of `source`, a file.
    ///
    /// As `HostFile.clone`: `.unsupported`, and nothing has changed, where the image or the file system cannot.
    package static func clone(
        _ range: ByteRange, from source: CloneSource, in device: any BlockDevice
    ) async throws(BlockError) {
        guard let image = device as? RawImage else {
            throw BlockError(
                .unsupported, "\(device.name) cannot share the blocks of \(source.path): it is not raw")
        }
        try await image.clone(range, from: source)
    }

    /// Where in the file of `device`, an image made or opened here, the data of `range` stands: what is to be written
    /// back after a write to it. In no order; nothing for what has no data there.
    package static func places(
        of range: ByteRange, in device: any BlockDevice
    ) async throws(BlockError) -> [ByteRange] {
        guard let image = device as? Qcow2Image else { return [range] }
        return try await image.places(of: range)
    }
}
