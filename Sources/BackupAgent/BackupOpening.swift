internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Glibc

/// A backup with its manifest, opened to be read back.
struct OpenedBackup: Sendable {
    var image: OpenImage
    var manifest: Manifest
    /// The backup's true path.
    var path: String
    var manifestPath: String
    /// The image does not hold everything by itself, and what it lies on is not open.
    var isLayer: Bool

    /// The drive as it was, as long as it was: a qcow2 disk may be longer by a part of a sector.
    var device: any BlockDevice {
        image.device.size == manifest.size ? image.device : PrefixDevice(image.device, size: manifest.size)
    }
}

/// A backup's way from a path to an open image. What is opened is what the manifest says it is: nothing is probed.
struct BackupOpening: Sendable {
    let path: String
    let access: PathAccess
    let manifestDirectory: String
    let engine: any IOEngine

    /// Opens the backup for reading, with QEMU's locks: its own image alone, or with all that it lies on.
    func open(withChain: Bool) async throws(AgentError) -> OpenedBackup {
        try PathPolicy.checkSyntax(path)
        let file = try await resolve(path)
        try access.check(file)
        let isDevice = try await isDevice(file)
        let place =
            isDevice
            ? ManifestPlace(path: path, deviceDirectory: manifestDirectory) : ManifestPlace(path: file)
        if !isDevice, let manifest = await Self.truePath(place.path, engine) { try access.check(manifest) }
        let manifest = try await place.read(on: engine)
        guard manifest.state == .complete else {
            throw AgentError(
                .manifestPartial,
                "Couldn't use \(file): its manifest says that it is partial (the backup \(manifest.job) into it has not "
                    + "ended well, or not yet; back up again)", subject: file)
        }
        let image: OpenImage
        do throws(BlockError) {
            image =
                withChain
                ? try await OpenImage.open(
                    file, format: manifest.format, readOnly: true, gate: access.gate, on: engine)
                : try await OpenImage.openLayer(file, format: manifest.format, on: engine)
        } catch {
            throw AgentError(error, of: .drive, subject: file)
        }
        do throws(AgentError) {
            try Self.check(image.device.size, manifest, file, place)
        } catch {
            // It was only read.
            try? await image.close()
            throw error
        }
        return OpenedBackup(
            image: image, manifest: manifest, path: file, manifestPath: place.path,
            isLayer: !withChain && image.layers.first?.backingName != nil)
    }

    private static func check(
        _ size: UInt64, _ manifest: Manifest, _ file: String, _ place: ManifestPlace
    ) throws(AgentError) {
        let isSame =
            size == manifest.size
            || manifest.format == .qcow2 && size > manifest.size && size - manifest.size < 512
        guard !isSame else { return }
        throw AgentError(
            .manifestMismatch,
            "Couldn't use \(file): its disk has \(size) bytes, and \(place.path) is the manifest of one of \(manifest.size) "
                + "bytes (the file was cut off or changed since, or the manifest is another one's)",
            subject: file)
    }

    private func resolve(_ path: String) async throws(AgentError) -> String {
        guard let file = await Self.truePath(path, engine) else {
            throw AgentError(
                .fileNotFound, "Couldn't open \(path): there is no such file, or its path is not UTF-8",
                subject: path)
        }
        return file
    }

    private static func truePath(_ path: String, _ engine: any IOEngine) async -> String? {
        await engine.blocking {
            guard let resolved = realpath(path, nil) else { return nil }
            defer { free(resolved) }
            return String(validatingCString: resolved)
        }
    }

    private func isDevice(_ file: String) async throws(AgentError) -> Bool {
        let (parent, name) = try PathPolicy.split(file)
        let entry: Result<Directory.Entry?, BlockError> = await engine.blocking {
            Result { () throws(BlockError) in try Directory(parent).entry(name) }
        }
        do throws(BlockError) { return try entry.get()?.kind == .blockDevice } catch {
            throw AgentError(error, of: .drive, subject: file)
        }
    }
}

/// The beginning of a device.
private final class PrefixDevice: BlockDevice {
    private let device: any BlockDevice
    let size: UInt64

    /// `size` is at most the device's.
    init(_ device: any BlockDevice, size: UInt64) {
        precondition(size <= device.size, "a device has its beginning")
        self.device = device
        self.size = size
    }

    var name: String { device.name }
    var engine: any IOEngine { device.engine }
    var isReadOnly: Bool { true }
    var limits: BlockLimits { device.limits }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "read")
        try await device.read(range, into: buffer)
    }

    func write(_ range: ByteRange, from buffer: IOSlice) async throws(BlockError) { throw readOnly }

    func writeZeroes(_ range: ByteRange, mayUnmap: Bool) async throws(BlockError) { throw readOnly }

    func discard(_ range: ByteRange) async throws(BlockError) { throw readOnly }

    func flush() async throws(BlockError) {}

    func extents(in range: ByteRange) async throws(BlockError) -> [Extent] {
        try check(range, to: "describe")
        return try await device.extents(in: range)
    }

    func close() async throws(BlockError) { try await device.close() }

    private var readOnly: BlockError {
        BlockError(.denied, "Couldn't write to \(name): it is open for reading only")
    }
}
