internal import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Glibc
internal import Synchronization

/// A backup with its manifest, opened to be read back.
struct OpenedBackup: Sendable {
    var image: OpenImage
    var manifest: Manifest
    /// The backup's true path.
    var path: String
    var manifestPath: String
    /// The image does not hold everything by itself, and what it lies on is not open.
    var isLayer: Bool
    /// What whoever reads it back has to know of what it lies on, a sentence each.
    var remarks: [String] = []

    /// The drive as it was, as long as it was (a qcow2 disk may be longer by a part of a sector), and zeroes where the
    /// backup lacks it, whatever stands there.
    var device: any BlockDevice {
        let isSame = image.device.size == manifest.size && manifest.missing.isEmpty
        return isSame ? image.device : BackupDevice(image.device, manifest)
    }
}

/// A backup's way from a path to an open image. What is opened is what the manifest says it is: nothing is probed.
struct BackupOpening: Sendable {
    let path: String
    let access: PathAccess
    let manifestDirectory: String
    let engine: any IOEngine
    /// The drive that the backup is to be written to, where it is one, and its file: that must not be one of the backup's.
    var drive: (id: String, file: [FileIdentity])?

    /// Opens the backup for reading, with QEMU's locks: its own image alone, or with all that it lies on.
    func open(withChain: Bool) async throws(AgentError) -> OpenedBackup {
        try PathPolicy.checkSyntax(path)
        let file = try await resolve(path)
        try access.check(file)
        let isDevice = try await isDevice(file)
        var place =
            isDevice
            ? ManifestPlace(path: path, deviceDirectory: manifestDirectory) : ManifestPlace(path: file)
        if !isDevice, let manifest = await Self.truePath(place.path, engine) { try access.check(manifest) }
        let manifest = try await read(&place)
        guard manifest.state == .complete else {
            throw AgentError(
                .manifestPartial,
                "Couldn't use \(file): its manifest says that it is partial (the backup \(manifest.job) into it has not "
                    + "ended well, or not yet; back up again)", subject: file)
        }
        guard withChain || !manifest.isCloned else {
            throw AgentError(
                .noChecksums,
                "Couldn't verify \(file): it was cloned, so that nobody has read what is in it, and \(place.path) has no "
                    + "checksums to compare with (a backup started with --checksum xxh3-128, or --clone never, has them)",
                subject: file)
        }
        let named = NamedFiles(file)
        let gate = access.gate { named.add($0) }
        let image: OpenImage
        do throws(BlockError) {
            image =
                withChain
                ? try await OpenImage.open(
                    file, format: manifest.format, readOnly: true, gate: gate, on: engine)
                : try await OpenImage.openLayer(file, format: manifest.format, on: engine)
        } catch {
            // A drive that is written is locked against whoever would read it.
            if error.code == .locked { try await checkDrive(named.paths) }
            throw AgentError(error, of: .drive, subject: file)
        }
        do throws(AgentError) {
            // What was opened, whatever became of the name in between.
            for layer in image.layers { try access.check(layer.openedPath) }
            try await checkDrive(image.layers.map(\.path))
            try Self.check(image.device.size, manifest, file, place)
        } catch {
            // It was only read.
            try? await image.close()
            throw error
        }
        var backup = OpenedBackup(
            image: image, manifest: manifest, path: file, manifestPath: place.path,
            isLayer: !withChain && image.layers.first?.backingName != nil)
        if manifest.isCloned {
            backup.remarks = [
                "\(file) was cloned when it was made, and its manifest has no checksums: nothing says whether what is read "
                    + "is what was there"
            ]
        }
        guard withChain else { return backup }
        do throws(AgentError) {
            backup.remarks += try await remarks(
                on: image.layers.dropFirst().map(\.path), under: manifest, of: file)
        } catch {
            // As above.
            try? await image.close()
            throw error
        }
        return backup
    }

    /// Reads the manifest; that of a file in a directory that takes no others is where those of devices are.
    private func read(_ place: inout ManifestPlace) async throws(AgentError) -> Manifest {
        do throws(AgentError) { return try await place.read(on: engine) } catch {
            guard error.reason == .manifestMissing else { throw error }
            let other = ManifestPlace(path: path, deviceDirectory: manifestDirectory)
            do throws(AgentError) {
                let manifest = try await other.read(on: engine)
                place = other
                return manifest
            } catch let second {
                // Where neither is, it is the place beside the backup that the operator looks at.
                throw second.reason == .manifestMissing ? error : second
            }
        }
    }

    /// What there is to say of the files that a backup lies on, one on the other. Throws when one is known to be another than
    /// it was.
    private func remarks(
        on layers: [String], under manifest: Manifest, of file: String
    ) async throws(AgentError) -> [String] {
        var (remarks, upper, name): ([String], Manifest, String) = ([], manifest, file)
        for path in layers {
            let rest = "What \(name) does not hold itself comes from \(path)"
            if upper.sync == .none {
                return remarks + ["\(rest), as that is now: nothing vouches for it"]
            }
            guard let id = upper.parent?.id else {
                return remarks + ["\(rest), which had no manifest: nothing vouches for it"]
            }
            let found = try await parent(id, at: path, of: name)
            remarks.append(
                "\(rest), which is not compared with its own manifest ('drive-backup verify \(path)' does that)"
            )
            (upper, name) = (found, path)
        }
        if let parent = upper.parent {
            remarks.append(
                "\(name) lies on no other image, and its manifest says that it was made on \(parent.path): what it does not hold "
                    + "itself is whatever stands there, and nothing vouches for it")
        }
        return remarks
    }

    /// The manifest of what lies below `file`, which was made on the backup `id`.
    private func parent(_ id: String, at path: String, of file: String) async throws(AgentError) -> Manifest {
        let found: Manifest
        do throws(AgentError) { found = try await ManifestPlace(path: path).read(on: engine) } catch {
            throw AgentError(
                .manifestMismatch,
                "Couldn't use \(file): it lies on the backup \(path), and \(error.message)",
                subject: path)
        }
        guard found.id == id, found.state == .complete else {
            throw AgentError(
                .manifestMismatch,
                "Couldn't use \(file): it was made on the backup \(id), and \(path) is another one now, \(found.id) "
                    + "(put the right one there)", subject: path)
        }
        return found
    }

    /// Throws when one of a backup's files, the backup first, is what it is to be written to.
    private func checkDrive(_ files: [String]) async throws(AgentError) {
        guard let drive, let backup = files.first else { return }
        let same = await engine.blocking {
            files.first { file in FileIdentity.of(path: file).map(drive.file.contains) ?? false }
        }
        guard let same else { return }
        let what =
            same == backup ? "it is the drive's image" : "it lies on \(same), which is the drive's image"
        throw AgentError(
            .targetIsSource,
            "Couldn't restore \(backup) to the drive \(drive.id): \(what) and would be overwritten while it is read "
                + "(restore to a new image)", subject: drive.id)
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
        await engine.blocking { PathPolicy.truePath(path) }
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

/// The files of a chain, as far as they were named when it could not be opened.
private final class NamedFiles: Sendable {
    private let names: Mutex<[String]>

    init(_ first: String) { names = Mutex([first]) }

    func add(_ path: String) { names.withLock { $0.append(path) } }

    /// The first one first.
    var paths: [String] { names.withLock { $0 } }
}

/// A backup's image as its manifest tells it.
private final class BackupDevice: BlockDevice {
    private let device: any BlockDevice
    let size: UInt64
    /// In order.
    private let missing: [ByteRange]

    /// The manifest's size is at most the device's.
    init(_ device: any BlockDevice, _ manifest: Manifest) {
        precondition(manifest.size <= device.size, "a device has its beginning")
        self.device = device
        size = manifest.size
        missing = manifest.missing
    }

    var name: String { device.name }
    var engine: any IOEngine { device.engine }
    var isReadOnly: Bool { true }
    var limits: BlockLimits { device.limits }

    func read(_ range: ByteRange, into buffer: IOSlice) async throws(BlockError) {
        try check(range, to: "read")
        try await device.read(range, into: buffer)
        for hole in missing(in: range) {
            let start = Int(hole.offset - range.offset)
            buffer[start..<start + Int(hole.length)].bytes.initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    private func missing(in range: ByteRange) -> [ByteRange] {
        missing.compactMap { hole in
            let start = max(hole.offset, range.offset)
            let end = min(hole.end, range.end)
            return start < end ? ByteRange(start..<end) : nil
        }
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
