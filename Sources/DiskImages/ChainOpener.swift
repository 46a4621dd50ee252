internal import BlockIO
internal import Glibc

/// Opens an image and, one after another, the backing files that it and they name.
///
/// Each file is resolved to an absolute path without links, passed through the gate, opened, locked, compared with
/// all files before it (a chain that comes back to itself would never end), and its header checked. Only when the
/// whole chain has been found good are the devices put together, lowest first. Runs on the engine.
struct ChainOpener {
    static let maximumDepth = 64

    let gate: ImageGate
    let engine: any IOEngine
    /// For the top of the chain.
    let options: Qcow2Options
    /// The top is raw because it was probed, now or once.
    let isProbedRaw: Bool
    /// Of all files.
    var cache = CacheMode.writeback
    /// What the top lies on is not opened.
    var isLayerOnly = false
    /// Sees the top file before anything is written to it.
    let examine: @Sendable (HostFile) async -> Void

    private struct Link {
        var file: HostFile
        var layer: ImageLayer
        /// nil for raw.
        var header: Qcow2Header?
    }

    private var links: [Link] = []

    init(
        gate: ImageGate, options: Qcow2Options, isProbedRaw: Bool,
        examine: @escaping @Sendable (HostFile) async -> Void = { _ in }, engine: any IOEngine
    ) {
        self.gate = gate
        self.options = options
        self.isProbedRaw = isProbedRaw
        self.examine = examine
        self.engine = engine
    }

    mutating func open(_ path: String, format: ImageFormat?, readOnly: Bool) async throws(BlockError)
        -> OpenImage
    {
        do throws(BlockError) {
            return try await openAll(path, format: format, readOnly: readOnly)
        } catch {
            for link in links {
                // The error that led here is the one to tell; the descriptors are gone after this either way.
                try? await link.file.close()
            }
            throw error
        }
    }

    private mutating func openAll(
        _ path: String, format: ImageFormat?, readOnly: Bool
    ) async throws(BlockError) -> OpenImage {
        let resolved = try await resolve(path)
        let (wasProbed, top) = (format == nil, try await add(resolved, format: format, readOnly: readOnly))
        await examine(top.file)
        var current = top
        while !isLayerOnly, let name = current.layer.backingName {
            guard links.count < Self.maximumDepth else {
                throw BlockError(
                    .unsupported,
                    "Couldn't open \(path): its chain of backing files has more than \(Self.maximumDepth) layers"
                )
            }
            current = try await Self.naming(current.layer.path) { () async throws(BlockError) -> Link in
                let backing = try await resolveBacking(name, of: current.layer.path)
                try gate.check(backing)
                let link = try await addBacking(backing, of: current.layer)
                // Its name was allowed; what is open may be what somebody has put there since.
                try gate.check(link.layer.openedPath)
                return link
            }
        }
        let devices = makeDevices(readOnly: readOnly, wasProbed: wasProbed)
        for (device, overlay) in zip(devices.dropFirst(), links.map(\.layer.path)) {
            // A backing file is only read, so that a journal that holds something is a refusal here.
            try await Self.naming(overlay) { () async throws(BlockError) in
                _ = try await (device as? Qcow2Image)?.recover()
            }
        }
        let note = try await (devices[0] as? Qcow2Image)?.recover()
        let obstacle = top.header?.writeObstacle.map { obstacle in
            BlockError(.unsupported, "Couldn't open \(top.layer.path) for writing: \(obstacle)")
        }
        return OpenImage(
            device: devices[0], backingDevice: devices.count > 1 ? devices[1] : nil, format: top.layer.format,
            wasProbed: wasProbed, layers: links.map(\.layer),
            top: top.file, writeRefusal: obstacle, recoveryNote: note)
    }

    /// The devices of the chain, top first; each has the next one below it.
    private func makeDevices(readOnly: Bool, wasProbed: Bool) -> [any BlockDevice] {
        var devices: [any BlockDevice] = []
        for (depth, link) in links.enumerated().reversed() {
            let isReadOnly = readOnly || depth > 0
            if let header = link.header {
                let alone = isLayerOnly ? header.backingName.map(Qcow2Image.Backing.notOpen) : nil
                devices.append(
                    Qcow2Image(
                        link.file, header: header,
                        backing: devices.last.map(Qcow2Image.Backing.open) ?? alone ?? .none,
                        isReadOnly: isReadOnly,
                        options: options))
            } else {
                let keepsFormat = depth == 0 && (wasProbed || isProbedRaw)
                devices.append(RawImage(link.file, isReadOnly: isReadOnly, keepsFormat: keepsFormat))
            }
        }
        precondition(!devices.isEmpty, "a chain has at least one image")
        return devices.reversed()
    }

    /// Opens one more file of the chain and checks its header.
    @discardableResult
    private mutating func add(
        _ path: String, format: ImageFormat?, readOnly: Bool
    ) async throws(BlockError) -> Link {
        let file = try await HostFile.open(
            path, readOnly: readOnly, direct: cache == .none,
            lock: readOnly ? OpenImage.readerLock : OpenImage.ownerLock, on: engine)
        var link = Link(
            file: file,
            layer: ImageLayer(
                path: path, openedPath: await file.truePath() ?? path, format: format ?? .raw,
                identity: file.identity, aliases: file.aliases,
                virtualSize: file.size, clusterSize: 0))
        let isLoop = links.contains { $0.file.identity == file.identity }
        links.append(link)
        guard !isLoop else {
            throw BlockError(
                .corrupt, "Couldn't open \(path): the chain of backing files comes back to this file")
        }
        if format == nil { link.layer.format = try await ImageFiles.probe(file) }
        if link.layer.format == .qcow2 {
            let header = try await ImageFiles.readHeader(file)
            link.header = header
            link.layer.virtualSize = header.size
            link.layer.clusterSize = header.clusterSize
            link.layer.backingName = header.backingName
            link.layer.backingFormat = header.backingFormat
        } else if !readOnly, let unit = file.directUnit, file.size % unit != 0 {
            // Its last bytes could not be written without making the disk longer.
            throw BlockError(
                .unsupported,
                "Couldn't use \(path) past the page cache: its size, \(file.size) bytes, is not a multiple of \(unit) (use "
                    + "it with cache=writeback)")
        }
        links[links.count - 1] = link
        return link
    }

    private mutating func addBacking(_ path: String, of overlay: ImageLayer) async throws(BlockError) -> Link
    {
        if let recorded = overlay.backingFormat {
            guard let format = ImageFormat(rawValue: recorded) else {
                throw BlockError(
                    .unsupported,
                    "Couldn't open \(path), the backing file of \(overlay.path): its recorded format, \(recorded), "
                        + "is not supported")
            }
            return try await add(path, format: format, readOnly: true)
        }
        // Without a recorded format only what cannot be mistaken is taken: a guest can make a raw disk look like
        // anything, but nothing makes an image that is looked up as raw safe.
        let link = try await add(path, format: nil, readOnly: true)
        guard link.layer.format != .raw else {
            throw BlockError(
                .unsupported,
                "Couldn't open \(path), the backing file of \(overlay.path): its format is not recorded there; "
                    + "record it with qemu-img rebase -u -f qcow2 -F raw -b '\(overlay.backingName ?? path)' "
                    + "'\(overlay.path)' if it is raw")
        }
        return link
    }

    private func resolveBacking(_ name: String, of overlay: String) async throws(BlockError) -> String {
        if let colon = name.firstIndex(of: ":"), !name[..<colon].hasSlash {
            throw BlockError(
                .unsupported,
                "Couldn't open \"\(name)\", the backing file of \(overlay): only plain files are supported")
        }
        let directory = overlay.splitAtLastSlash?.directory ?? "."
        return try await resolve(name.isAbsolutePath ? name : "\(directory)/\(name)")
    }

    /// Errors of a backing file say whose it is.
    private static func naming<Result>(
        _ overlay: String, _ body: () async throws(BlockError) -> Result
    ) async throws(BlockError) -> Result {
        do throws(BlockError) {
            return try await body()
        } catch {
            guard !error.message.contains(overlay) else { throw error }
            throw BlockError(
                error.code, "\(error.message) (it is the backing file of \(overlay))", errno: error.errno)
        }
    }

    /// The absolute path of a file without links.
    private func resolve(_ path: String) async throws(BlockError) -> String {
        guard !path.isEmpty, !path.utf8.contains(0) else {
            throw BlockError(.invalid, "Couldn't open \"\(path)\": it is empty or contains a NUL byte")
        }
        let resolved: Result<String, BlockError> = await engine.blocking {
            guard let result = realpath(path, nil) else {
                return .failure(BlockError("Couldn't open \(path)", errno: errno))
            }
            defer { free(result) }
            guard let text = String(validatingCString: result) else {
                return .failure(BlockError(.invalid, "Couldn't open \(path): its path is not valid UTF-8"))
            }
            return .success(text)
        }
        return try resolved.get()
    }
}
