internal import BlockIO

/// Where the manifest of a backup is.
struct ManifestPlace: Sendable {
    /// The manifest's own path.
    let path: String

    /// - Parameters:
    ///   - path: the backup's true path, or that by which a device was named.
    ///   - directory: where manifests of devices are; nil for a file.
    init(path: String, deviceDirectory directory: String? = nil) {
        let target = directory.map { "\($0)/\(Self.name(ofDevice: path))" } ?? path
        self.path = target + Manifest.suffix
    }

    /// What stands for a device's path in a directory: no slash is left in it.
    static func name(ofDevice path: String) -> String {
        let bytes = path.utf8.drop { $0 == UInt8(ascii: "/") }.flatMap { byte -> [UInt8] in
            switch byte {
            case UInt8(ascii: "%"): Array("%25".utf8)
            case UInt8(ascii: "/"): Array("%2F".utf8)
            default: [byte]
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// Reads it. Throws MANIFEST_MISSING when there is none, MANIFEST_INVALID for what is none.
    func read(on engine: any IOEngine) async throws(AgentError) -> Manifest {
        let bytes: [UInt8]
        do throws(BlockError) {
            let path = path
            bytes = try await engine.run { () async throws(BlockError) in
                let file = try await HostFile.open(path, readOnly: true, on: engine)
                do throws(BlockError) {
                    let bytes = try await Self.content(of: file)
                    try await file.close()
                    return bytes
                } catch {
                    // It was only read; the error that led here is the one to tell.
                    try? await file.close()
                    throw error
                }
            }
        } catch {
            guard error.code == .notFound else { throw AgentError(error, of: .drive, subject: path) }
            throw AgentError(
                .manifestMissing,
                "Couldn't read \(path): there is no such file (drive-backup writes one for each backup; without it "
                    + "nothing is known of what the backup must hold)", subject: path)
        }
        let decoded: Result<Manifest, Manifest.Malformed> = await engine.blocking {
            Result { () throws(Manifest.Malformed) in try Manifest(decoding: bytes) }
        }
        do throws(Manifest.Malformed) { return try decoded.get() } catch {
            throw AgentError(
                .manifestInvalid, "Couldn't use \(path) as a manifest: \(error.reason)", subject: path)
        }
    }

    private static func content(of file: HostFile) async throws(BlockError) -> [UInt8] {
        guard !file.isBlockDevice, file.size <= UInt64(Manifest.largest) else {
            throw BlockError(
                .unsupported, "Couldn't read \(file.name): it has more than \(Manifest.largest) bytes")
        }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(Int(file.size))
        let buffer = IOBuffer(count: 1 << 20)
        while bytes.count < Int(file.size) {
            let part = buffer[0..<min(buffer.count, Int(file.size) - bytes.count)]
            try await file.read(
                ByteRange(offset: UInt64(bytes.count), length: UInt64(part.count)), into: part)
            bytes.append(contentsOf: part.bytes)
        }
        return bytes
    }
}
