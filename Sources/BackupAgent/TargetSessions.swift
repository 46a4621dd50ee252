internal import BlockIO
internal import DiskImages

/// Opens targets in this process, each on an engine of its own, or all on one.
package struct TargetSessions: TargetOpener {
    private let claims: any TargetClaims
    private let kind: EngineKind
    /// The engine of all targets, which stays; nil: each has one that ends with it.
    private let engine: (any IOEngine)?

    init(claims: any TargetClaims, kind: EngineKind = .threads, engine: (any IOEngine)? = nil) {
        self.claims = claims
        self.kind = kind
        self.engine = engine
    }

    package func check(_ spec: TargetSpec) async throws(AgentError) {
        // One that exists is not changed by being opened.
        guard case .new(let overwrites) = spec.mode else { return }
        let engine = try engine(for: spec)
        let (claims, spec) = (claims, spec)
        let checked: Result<NewTargetFile, AgentError> = await engine.blocking {
            Result { () throws(AgentError) in
                try TargetOpening.checkFormat(spec)
                return try NewTargetFile(checking: spec, overwrites: overwrites, claims: claims)
            }
        }
        let manifest: Result<Void, AgentError>
        do throws(AgentError) {
            let names = try checked.get()
            try await ManifestFile(of: names.name, in: names.directory, on: engine).check()
            manifest = .success(())
        } catch {
            manifest = .failure(error)
        }
        claims.release(.target(spec.job, jobID: spec.jobID))
        await end(engine)
        try manifest.get()
    }

    package func open(_ spec: TargetSpec) async throws(AgentError) -> any JobTarget {
        let engine = try engine(for: spec)
        do throws(AgentError) {
            return try await engine.run { () async throws(AgentError) in
                let opening = TargetOpening(
                    spec: spec, claims: claims, engine: engine, endsEngine: self.engine == nil)
                return try await opening.run()
            }
        } catch {
            claims.release(.target(spec.job, jobID: spec.jobID))
            await end(engine)
            throw error
        }
    }

    package func reserve(_ spec: TargetSpec) { claims.reserve(spec) }

    package func release(_ spec: TargetSpec) { claims.release(.target(spec.job, jobID: spec.jobID)) }

    package func reopen(_ spec: TargetSpec) async throws(AgentError) -> ReopenedTarget {
        let engine = try engine(for: spec)
        do throws(AgentError) {
            let target = try await engine.run { () async throws(AgentError) -> TargetSession? in
                try await TargetOpening(
                    spec: spec, claims: claims, engine: engine, endsEngine: self.engine == nil
                ).reopen()
            }
            if let target { return .open(target) }
            await end(engine)
            return .published
        } catch {
            await end(engine)
            throw error
        }
    }

    private func end(_ engine: any IOEngine) async {
        if self.engine == nil { await engine.shutDown() }
    }

    private func engine(for spec: TargetSpec) throws(AgentError) -> any IOEngine {
        if let engine { return engine }
        do throws(BlockError) { return try kind.makeEngine(name: "target \(spec.jobID)") } catch {
            throw AgentError(error, of: .target, subject: spec.path)
        }
    }
}

/// One target's way from a spec to a session. Runs on the target's engine.
private struct TargetOpening {
    let spec: TargetSpec
    let claims: any TargetClaims
    let engine: any IOEngine
    let endsEngine: Bool

    func run() async throws(AgentError) -> TargetSession {
        switch spec.mode {
        case .new(let overwrites): try await make(overwrites: overwrites)
        case .existing: try await openExisting()
        case .resume: preconditionFailure("what was left is reopened")
        }
    }

    private var holder: FileClaims.Holder { .target(spec.job, jobID: spec.jobID) }

    // MARK: A new target

    /// A new image of the format can have what it is to have.
    static func checkFormat(_ spec: TargetSpec) throws(AgentError) {
        let format = spec.format ?? .raw
        guard spec.backing == nil || format != .raw else {
            throw AgentError(
                .backingUnsupported,
                "Couldn't make \(spec.path): a raw image cannot have a backing file, which sync \(spec.sync) needs "
                    + "(use --format qcow2, or --sync full)", subject: spec.path)
        }
    }

    private func make(overwrites: Bool) async throws(AgentError) -> TargetSession {
        try Self.checkFormat(spec)
        let (spec, claims) = (spec, claims)
        let names = try await blocking { () throws(AgentError) in
            try NewTargetFile(checking: spec, overwrites: overwrites, claims: claims)
        }
        let manifest = ManifestFile(of: names.name, in: names.directory, on: engine)
        try await manifest.check()
        let descriptor = try await blocking { () throws(AgentError) in try names.create() }
        do throws(AgentError) {
            return try await fill(descriptor, names, manifest, spec.format ?? .raw)
        } catch {
            // Nothing of ours may be left; the error that led here is the one to tell.
            await engine.blocking { try? names.remove() }
            throw error
        }
    }

    /// Makes the image in the new, locked file; the descriptor is closed when it throws.
    private func fill(
        _ descriptor: Int32, _ names: NewTargetFile, _ manifest: ManifestFile, _ format: ImageFormat
    ) async throws(AgentError) -> TargetSession {
        let keeper = try keepLocks(of: descriptor)
        let file = try await adopt(descriptor, name: names.path, growable: true, lock: nil)
        do throws(AgentError) {
            try await blocking { () throws(AgentError) in try names.claim() }
            let device = try await block { () async throws(BlockError) in
                try await TargetImage.create(
                    on: file, format: format, size: spec.size,
                    backing: spec.backing.map { (name: $0.path, format: $0.format) })
            }
            let image = TargetPlace.Image(
                device: device, format: format, clusterSize: TargetPlace.newClusterSize,
                readsAsZero: spec.backing == nil)
            let place = TargetPlace(
                path: names.path, birthTime: file.birthTime(), new: names, manifest: manifest, claims: claims,
                holder: holder)
            return TargetSession(
                image, place: place, file: file, keeper: keeper, spec: spec,
                endsEngine: endsEngine)
        } catch {
            await discard(file, keeper)
            throw error
        }
    }

    // MARK: A target that an earlier agent has left

    /// nil when it has its name by now.
    func reopen() async throws(AgentError) -> TargetSession? {
        guard case .resume(let known) = spec.mode else { preconditionFailure("the mode says what was left") }
        let (spec, claims) = (spec, claims)
        guard known.isNew else {
            let found = try await blocking { () throws(AgentError) in
                try ExistingTargetFile(opening: spec, claims: claims)
            }
            return try await goOn(found.descriptor, found.path, nil, known)
        }
        let (names, descriptor) = try await blocking { () throws(AgentError) in
            let names = try NewTargetFile(resuming: spec, known, claims: claims)
            return (names, try names.reopen(known))
        }
        guard let descriptor else {
            // That of a target that replaced another one gets its name last.
            if !spec.isRestored {
                try await publishManifest(ManifestFile(of: names.name, in: names.directory, on: engine))
            }
            return nil
        }
        return try await goOn(descriptor, names.path, names, known)
    }

    private func publishManifest(_ manifest: ManifestFile) async throws(AgentError) {
        try await manifest.takeUp()
        try await blocking { () throws(AgentError) in
            do throws(BlockError) { try manifest.publishStaged() } catch {
                throw AgentError(error, of: .target, subject: manifest.path)
            }
        }
    }

    /// Takes over the descriptor of what was left.
    private func goOn(
        _ descriptor: Int32, _ path: String, _ new: NewTargetFile?, _ known: TargetSpec.Resumption
    ) async throws(AgentError) -> TargetSession {
        let keeper = try keepLocks(of: descriptor)
        let file = try await adopt(
            descriptor, name: new?.partialPath ?? path, growable: true, lock: new == nil ? (.all, .all) : nil)
        let birthTime = file.birthTime()
        do throws(AgentError) {
            // An inode number is soon used again; where the file system knows no times of birth that has to do.
            guard file.identity.inode == known.inode,
                known.isOtherBoot || file.identity.device == known.device,
                known.birthTime == 0 || birthTime == 0 || file.isBlockDevice || birthTime == known.birthTime
            else {
                throw AgentError(
                    .targetLost,
                    "Couldn't go on with \(path): it was replaced while the agent was not running",
                    subject: path)
            }
            if let new { try await blocking { () throws(AgentError) in try new.claim() } }
            let device = try await block { () async throws(BlockError) in try await openAgain(file, known) }
            guard known.isNew || device.size >= spec.size else {
                throw AgentError(
                    .targetLost,
                    "Couldn't go on with \(path): its disk has only \(device.size) bytes now, the drive has \(spec.size)",
                    subject: path)
            }
            let image = TargetPlace.Image(
                device: device, format: spec.format ?? .raw, clusterSize: known.clusterSize,
                readsAsZero: known.readsAsZero)
            let manifest =
                if let new {
                    ManifestFile(of: new.name, in: new.directory, on: engine)
                } else {
                    try await manifestFile(of: path, isDevice: file.isBlockDevice)
                }
            try await manifest.takeUp()
            let place = TargetPlace(
                path: path, birthTime: known.birthTime, new: new, manifest: manifest, claims: claims,
                holder: holder)
            return TargetSession(
                image, place: place, file: file, keeper: keeper, spec: spec, endsEngine: endsEngine)
        } catch {
            await discard(file, keeper)
            throw error
        }
    }

    /// The one place where an image that a killed agent was writing is opened again.
    private func openAgain(
        _ file: HostFile, _ known: TargetSpec.Resumption
    ) async throws(BlockError) -> any BlockDevice {
        let format = spec.format ?? .raw
        guard known.isNew else { return try await TargetImage.resumeExisting(file, format: format).device }
        var backing: (name: String, format: ImageFormat)?
        if let name = known.backingPath, let format = known.backingFormat { backing = (name, format) }
        return try await TargetImage.resume(file, format: format, size: spec.size, backing: backing)
    }

    // MARK: A target that exists

    private func openExisting() async throws(AgentError) -> TargetSession {
        let (spec, claims) = (spec, claims)
        let found = try await blocking { () throws(AgentError) in
            try ExistingTargetFile(opening: spec, claims: claims)
        }
        let keeper = try keepLocks(of: found.descriptor)
        let file = try await adopt(
            found.descriptor, name: found.path, growable: true, lock: (.all, .all))
        do throws(AgentError) {
            let existing = try await block { () async throws(BlockError) in
                try await TargetImage.openExisting(file, format: spec.format)
            }
            try checkSize(existing, path: found.path)
            try await checkBacking(existing, path: found.path)
            try checkClusters(existing, path: found.path)
            let manifest = try await manifestFile(of: found.path, isDevice: file.isBlockDevice)
            try await manifest.check()
            let image = TargetPlace.Image(
                device: existing.device, format: existing.format, clusterSize: existing.clusterSize,
                readsAsZero: false)
            let place = TargetPlace(
                path: found.path, birthTime: file.birthTime(), new: nil, manifest: manifest, claims: claims,
                holder: holder)
            return TargetSession(
                image, place: place, file: file, keeper: keeper, spec: spec,
                endsEngine: endsEngine)
        } catch {
            await discard(file, keeper)
            throw error
        }
    }

    /// The manifest of a target that exists. That of a device, or of a file in a directory that takes no others, is in the
    /// agent's own directory, by the name that the target was given.
    private func manifestFile(of path: String, isDevice: Bool) async throws(AgentError) -> ManifestFile {
        let (spec, engine) = (spec, engine)
        return try await blocking { () throws(AgentError) in
            do throws(BlockError) {
                if !isDevice {
                    let (parent, name) = try Self.split(path)
                    let directory = try Directory(parent)
                    let probe = name + Manifest.suffix + NewTargetFile.suffix
                    if try directory.takesFiles(probing: probe) {
                        return ManifestFile(of: name, in: directory, on: engine)
                    }
                }
                return ManifestFile(
                    of: ManifestPlace.name(ofDevice: spec.path), in: try Directory(spec.manifestDirectory),
                    on: engine)
            } catch {
                throw AgentError(error, of: .target, subject: path)
            }
        }
    }

    private static func split(_ path: String) throws(BlockError) -> (directory: String, name: String) {
        do throws(AgentError) { return try PathPolicy.split(path) } catch {
            throw BlockError(.invalid, error.message)
        }
    }

    /// The sizes are the same; a qcow2 disk is counted in sectors of 512 bytes.
    private func checkSize(_ existing: TargetImage.Existing, path: String) throws(AgentError) {
        let size = existing.virtualSize
        let isSame =
            size == spec.size
            || (existing.format == .qcow2 && size >= spec.size && size - spec.size < 512
                && size.isMultiple(of: 512))
        guard !isSame else { return }
        throw AgentError(
            .targetSizeMismatch,
            "Couldn't use \(path) as target: its disk has \(size) bytes, the drive has \(spec.size)",
            subject: path)
    }

    /// With sync none all that is not in the target is its backing file's: that must be the drive's image, by whatever
    /// name.
    private func checkBacking(_ existing: TargetImage.Existing, path: String) async throws(AgentError) {
        guard spec.sync == .none, let wanted = spec.backing else { return }
        guard existing.format != .raw else {
            throw AgentError(
                .backingUnsupported,
                "Couldn't use \(path) as target: a raw image cannot have a backing file, which sync none needs "
                    + "(use a qcow2 image, or --sync full)", subject: path)
        }
        let hint = "make it with 'qemu-img create -f qcow2 -b \(wanted.path) -F \(wanted.format.rawValue)'"
        guard let name = existing.backingName else {
            throw AgentError(
                .backingMismatch,
                "Couldn't use \(path) as target: it has no backing file, and sync none needs the drive's image there "
                    + "(\(hint))", subject: path)
        }
        let resolved = name.isAbsolutePath ? name : (try PathPolicy.split(path).directory) + "/" + name
        let found = await engine.blocking { FileIdentity.of(path: resolved) }
        guard let found, wanted.identities.contains(found) else {
            throw AgentError(
                .backingMismatch,
                "Couldn't use \(path) as target: its backing file is \(name), and sync none needs the drive's image "
                    + "\(wanted.path) there (\(hint))", subject: path)
        }
        guard existing.backingFormat == nil || existing.backingFormat == wanted.format.rawValue else {
            throw AgentError(
                .backingMismatch,
                "Couldn't use \(path) as target: it takes its backing file for \(existing.backingFormat ?? ""), and the "
                    + "drive is \(wanted.format.rawValue) (\(hint))", subject: path)
        }
    }

    /// A cluster is written by whole buffers; the rest of a larger one would have to come from the backing file, which a
    /// target does not open.
    private func checkClusters(_ existing: TargetImage.Existing, path: String) throws(AgentError) {
        guard existing.backingName != nil, existing.clusterSize > 1 << 20 else { return }
        throw AgentError(
            .imageUnsupported,
            "Couldn't use \(path) as target: it has clusters of \(existing.clusterSize) bytes and a backing file "
                + "(make it with clusters of at most 1048576 bytes)", subject: path)
    }

    // MARK: Helpers

    private func keepLocks(of descriptor: Int32) throws(AgentError) -> LockKeeper {
        do throws(BlockError) { return try LockKeeper(keeping: descriptor, path: spec.path) } catch {
            Descriptor.close(descriptor)
            throw AgentError(error, of: .target, subject: spec.path)
        }
    }

    private func adopt(
        _ descriptor: Int32, name: String, growable: Bool, lock: HostFile.Lock?
    ) async throws(AgentError) -> HostFile {
        try await block { () async throws(BlockError) in
            let file = try await HostFile(
                adopting: descriptor, name: name, readOnly: false, growable: growable, lock: lock,
                keepsLocks: true, engine: engine)
            await file.bypassCache()
            return file
        }
    }

    private func discard(_ file: HostFile, _ keeper: LockKeeper) async {
        try? await file.close()  // nothing was written that counts
        await engine.blocking { keeper.close() }
    }

    private func block<Value>(
        _ body: () async throws(BlockError) -> Value
    ) async throws(AgentError) -> Value {
        do throws(BlockError) { return try await body() } catch {
            throw AgentError(error, of: .target, subject: spec.path)
        }
    }

    private func blocking<Value: Sendable>(
        _ body: @escaping @Sendable () throws(AgentError) -> Value
    ) async throws(AgentError) -> Value {
        let result: Result<Value, AgentError> = await engine.blocking {
            Result { () throws(AgentError) in try body() }
        }
        return try result.get()
    }
}
