package import BackupJobs
internal import BlockIO
internal import DiskImages
internal import Glibc
package import Logging

/// The drives: those of the command line and those that clients add, which are kept over restarts.
///
/// An id is reserved before anything is awaited, so that of two who add the same drive one is refused.
package actor DriveRegistry {
    private struct Drive {
        var option: DriveOption
        var isFromCommandLine: Bool
        var image: OpenImage?
        /// The image as guests and jobs use it; there whenever `image` is.
        var live: LiveDrive?
        var problem: AgentError?
        /// The job that uses it.
        var jobID: String?
        /// The names of its exports.
        var exports: Set<String> = []
        /// A guest may write to it, or might have.
        var isWritten = false
        /// For each export that is gone and whose requests had not ended, whether they still have not.
        var leftBehind: [@Sendable () -> Bool] = []
        /// A backup is written to it: nobody may export it.
        var isRestored = false
        /// It is being opened or closed: there for the id's sake only.
        var isInTransition = true

        /// Requests of an export that is gone have not ended: the image must not be closed under them.
        var isStuck: Bool { leftBehind.contains { $0() } }
    }

    private var drives: [String: Drive] = [:]
    private let started = ContinuousClock.now
    private let engines: EnginePool
    private let claims: FileClaims
    private let store: StateStore?
    /// Where drives keep what must outlive a killed agent, and not the host.
    private let journalDirectory: String?
    private let logger: Logger
    /// The jobs that go on, by drive: each sees the drive's file before anything is written to it.
    private let admissions: [String: DriveAdmission]

    /// Makes an empty registry; without `store` nothing is kept.
    package init(
        engines: EnginePool, claims: FileClaims, store: StateStore?, journalDirectory: String? = nil,
        admissions: [String: DriveAdmission] = [:], logger: Logger
    ) {
        self.admissions = admissions
        self.journalDirectory = journalDirectory
        self.engines = engines
        self.claims = claims
        self.store = store
        self.logger = logger
    }

    // MARK: At the agent's start

    /// Opens a drive of the command line; it passes every gate, since it is the operator's own. Throws a
    /// sentence for the operator.
    package func openFromCommandLine(_ option: DriveOption) async throws(AgentError) {
        guard drives[option.id] == nil else {
            throw AgentError(
                .driveExists, "Couldn't open the drive \(option.id): it is given twice", subject: option.id)
        }
        drives[option.id] = Drive(option: option, isFromCommandLine: true)
        do throws(AgentError) {
            finish(option.id, try await open(option, access: .everything, isStart: true))
        } catch {
            drives[option.id] = nil
            throw AgentError(error.reason, "Drive \(option.id): \(error.message)", subject: option.id)
        }
    }

    /// Opens what clients have added in earlier runs. A drive that cannot be opened stays listed with its
    /// problem, one whose id the command line has given to another is left alone.
    package func openStored(_ stored: [StateStore.StoredDrive], access: PathAccess) async {
        for drive in stored where drives[drive.id] == nil {
            let option = DriveOption(
                id: drive.id, file: drive.file, format: drive.format, isReadOnly: drive.isReadOnly,
                cache: drive.cache, isProbedRaw: drive.isProbedRaw)
            drives[drive.id] = Drive(option: option, isFromCommandLine: false)
            do throws(AgentError) {
                finish(drive.id, try await open(option, access: access, isStart: true))
            } catch {
                logger.warning("The drive \(drive.id) is not available: \(error.message)")
                drives[drive.id]?.problem = error
                drives[drive.id]?.isInTransition = false
            }
        }
    }

    // MARK: For clients

    /// All drives, by id.
    package func list() -> [DriveInfo] {
        drives.values.filter { !$0.isInTransition }.map(Self.info).sorted { $0.id < $1.id }
    }

    package func get(_ id: String) throws(AgentError) -> DriveInfo { Self.info(try find(id)) }

    /// Opens an image as a drive and keeps it over restarts. When it throws, nothing has changed.
    package func add(_ option: DriveOption, access: PathAccess) async throws(AgentError) -> DriveInfo {
        try Identifier.check(option.id, field: "id")
        try PathPolicy.checkSyntax(option.file)
        guard drives[option.id] == nil else {
            throw AgentError(
                .driveExists, "Couldn't add the drive \(option.id): there is one of that id already",
                subject: option.id)
        }
        drives[option.id] = Drive(option: option, isFromCommandLine: false)
        do throws(AgentError) {
            let image = try await open(option, access: access)
            do throws(AgentError) {
                try await store?.add(
                    StateStore.StoredDrive(
                        id: option.id, file: option.file, format: image.format,
                        isReadOnly: option.isReadOnly, cache: option.cache,
                        isProbedRaw: image.wasProbed && image.format == .raw))
            } catch {
                await close(image, of: option.id)
                engines.release(image.device.engine)
                throw error
            }
            finish(option.id, image)
            return try get(option.id)
        } catch {
            drives[option.id] = nil
            throw error
        }
    }

    /// Closes a drive and forgets it.
    package func remove(_ id: String) async throws(AgentError) {
        let drive = try find(id)
        guard !drive.isFromCommandLine else {
            throw AgentError(
                .driveInvalid,
                "Couldn't remove the drive \(id): it was given on the agent's command line", subject: id)
        }
        try checkUnused(drive)
        if let export = drive.exports.min() {
            throw AgentError(
                .driveBusy,
                "Couldn't remove the drive \(id): the export \(export) serves it (remove that first)",
                subject: id)
        }
        guard !drive.isStuck else {
            throw AgentError(
                .driveBusy,
                "Couldn't remove the drive \(id): requests to it that an export left have not ended (a disk that hangs? "
                    + "it can be removed when they have)",
                subject: id)
        }
        drives[id]?.isInTransition = true
        do throws(AgentError) { try await store?.remove(drive: id) } catch {
            drives[id]?.isInTransition = false
            throw error
        }
        await close(drive)
        drives[id] = nil
    }

    // MARK: For jobs

    /// Throws unless a job could take the drive now.
    package func check(_ id: String) throws(AgentError) {
        let drive = try find(id)
        if let problem = drive.problem {
            throw AgentError(
                .driveInvalid, "The drive \(id) is not available: \(problem.message)", subject: id)
        }
        try checkUnused(drive)
    }

    /// Takes the drive for a job; it is given back with `giveBack`.
    package func lease(_ id: String, jobID: String) throws(AgentError) -> DriveLease {
        try check(id)
        guard let image = drives[id]?.image, let live = drives[id]?.live else { throw Self.notFound(id) }
        drives[id]?.jobID = jobID
        return DriveLease(id: id, image: image, live: live)
    }

    /// The file that a drive's writes go to, by all its identities; none of a drive that is not open.
    func topFile(of id: String) -> [FileIdentity] {
        drives[id]?.image?.layers.first.map { [$0.identity] + $0.aliases } ?? []
    }

    /// Takes a drive that nobody has open, to be overwritten by a job, and tells all other processes so.
    func leaseForRestore(_ id: String, jobID: String) async throws(AgentError) -> DriveLease {
        try check(id)
        let drive = try find(id)
        guard let image = drive.image, let live = drive.live else { throw Self.notFound(id) }
        if let export = drive.exports.min() {
            throw AgentError(
                .driveBusy,
                "Couldn't restore to the drive \(id): the export \(export) serves it (remove that first)",
                subject: id)
        }
        guard !drive.isStuck else {
            throw AgentError(
                .driveBusy,
                "Couldn't restore to the drive \(id): requests to it that an export left have not ended (a disk that hangs?)",
                subject: id)
        }
        guard !drive.option.isReadOnly else {
            throw AgentError(
                .driveInvalid, "Couldn't restore to the drive \(id): it is read-only", subject: id)
        }
        drives[id]?.jobID = jobID
        drives[id]?.isRestored = true
        do throws(BlockError) { try await image.takeWritePermission() } catch {
            drives[id]?.jobID = nil
            drives[id]?.isRestored = false
            throw AgentError(error, of: .drive, subject: drive.option.file)
        }
        drives[id]?.isWritten = true
        return DriveLease(id: id, image: image, live: live)
    }

    package func giveBack(_ lease: DriveLease) {
        drives[lease.id]?.jobID = nil
        drives[lease.id]?.isRestored = false
    }

    /// The engine for a backup that a job reads.
    func readingEngine(for path: String) throws(AgentError) -> any IOEngine {
        do throws(BlockError) { return try engines.readingEngine() } catch {
            throw AgentError(error, of: .drive, subject: path)
        }
    }

    // MARK: For exports

    /// Notes that an export of that name belongs to the drive, which cannot be removed until `detach`. Throws when there is
    /// no such drive.
    package func attach(export name: String, to id: String) throws(AgentError) {
        let drive = try find(id)
        guard !drive.isRestored else {
            throw AgentError(
                .driveBusy, "The drive \(id) is busy: the job \(drive.jobID ?? "") restores a backup to it",
                subject: id)
        }
        drives[id]?.exports.insert(name)
    }

    /// The export is gone. Where requests of it to the drive are left, `isLeaving` tells whether they still are: the drive
    /// is not closed before.
    package func detach(export name: String, from id: String, isLeaving: (@Sendable () -> Bool)? = nil) {
        drives[id]?.exports.remove(name)
        drives[id]?.leftBehind.removeAll { !$0() }
        if let isLeaving { drives[id]?.leftBehind.append(isLeaving) }
    }

    /// What an export of the drive serves. For a writable one all other processes are told first that the image is being
    /// written; refused when one of them does not allow that.
    package func device(of id: String, forWriting isWritten: Bool) async throws(AgentError) -> LiveDrive {
        let drive = try find(id)
        guard let image = drive.image, let live = drive.live else {
            let why = drive.problem.map { ": \($0.message)" } ?? ""
            throw AgentError(.driveInvalid, "The drive \(id) is not available\(why)", subject: id)
        }
        guard isWritten else { return live }
        guard !drive.option.isReadOnly else {
            throw AgentError(
                .exportInvalid, "Couldn't make a writable export of the drive \(id): it is read-only",
                subject: id)
        }
        do throws(BlockError) { try await image.takeWritePermission() } catch {
            throw AgentError(error, of: .drive, subject: drive.option.file)
        }
        drives[id]?.isWritten = true
        return live
    }

    /// Flushes and closes all drives; nothing uses them any more.
    package func closeAll() async {
        let all = drives.values
        drives = [:]
        await withTaskGroup(of: Void.self) { group in
            for drive in all { group.addTask { await self.close(drive) } }
        }
    }

    // MARK: Helpers

    private func find(_ id: String) throws(AgentError) -> Drive {
        guard let drive = drives[id], !drive.isInTransition else { throw Self.notFound(id) }
        return drive
    }

    private static func notFound(_ id: String) -> AgentError {
        AgentError(
            .driveNotFound, "There is no drive \(Identifier.quoted(id)) ('drive list' shows them)",
            subject: id)
    }

    private func checkUnused(_ drive: Drive) throws(AgentError) {
        guard let job = drive.jobID else { return }
        throw AgentError(
            .driveBusy, "The drive \(drive.option.id) is busy: the job \(job) is using it",
            subject: drive.option.id)
    }

    private func finish(_ id: String, _ image: OpenImage) {
        drives[id]?.image = image
        drives[id]?.live = LiveDrive(image.device)
        drives[id]?.isInTransition = false
    }

    private func open(
        _ option: DriveOption, access: PathAccess, isStart: Bool = false
    ) async throws(AgentError) -> OpenImage {
        let engine: any IOEngine
        do throws(BlockError) { engine = try engines.engine() } catch {
            throw AgentError(error, of: .drive, subject: option.file)
        }
        do throws(AgentError) {
            let image = try await openClaimed(option, access: access, isStart: isStart, on: engine)
            engines.serve(on: engine)
            return image
        } catch {
            claims.release(.drive(option.id))
            engines.release(engine)
            throw error
        }
    }

    private func openClaimed(
        _ option: DriveOption, access: PathAccess, isStart: Bool, on engine: any IOEngine
    ) async throws(AgentError) -> OpenImage {
        let file = option.file
        // A path that leads nowhere is the image's to complain about.
        let path = await engine.blocking { PathPolicy.truePath(file) }
        if let path {
            try access.check(path)
            // Another drive of ours is told from another process before the locks are asked, which know no names.
            if let identity = await engine.blocking({ FileIdentity.of(path: path) }) {
                try claims.claim(
                    [FileClaims.DriveFile(path: path, identities: [identity], isWritten: !option.isReadOnly)],
                    forDrive: option.id)
            }
        }
        let image: OpenImage
        let admission = admissions[option.id]
        do throws(BlockError) {
            image = try await patiently(
                isStart ? patience(admission != nil, direct: option.cache == .none) : .zero
            ) {
                () async throws(BlockError) in
                try await OpenImage.open(
                    path ?? file, format: option.format, readOnly: option.isReadOnly, gate: access.gate,
                    cache: option.cache, journalDirectory: self.journalDirectory,
                    isProbedRaw: option.isProbedRaw,
                    examine: { await admission?.examine($0) }, on: engine)
            }
        } catch {
            throw AgentError(error, of: .drive, subject: option.file)
        }
        if let note = image.recoveryNote { logger.notice("The drive \(option.id): \(note)") }
        do throws(AgentError) {
            // What was opened, whatever became of the name in between.
            if let top = image.layers.first { try access.check(top.openedPath) }
            let files = image.layers.enumerated().map { depth, layer in
                FileClaims.DriveFile(
                    path: layer.path, identities: [layer.identity] + layer.aliases,
                    isWritten: depth == 0 && !option.isReadOnly)
            }
            try claims.claim(files, forDrive: option.id)
        } catch {
            await close(image, of: option.id)
            throw error
        }
        return image
    }

    /// How long to wait for an agent that was killed to let go of a drive. What is on its way to the page cache is there soon;
    /// what is on its way to a disk when the disk has time for it, and for that all drives together wait so long after the
    /// start: others may have them for good.
    private func patience(_ hasJob: Bool, direct isDirect: Bool) -> Duration {
        let forDisks = isDirect ? max(.zero, .seconds(10) - (ContinuousClock.now - started)) : .zero
        return max(hasJob ? .seconds(3) : .zero, forDisks)
    }

    /// Does `body` again for a while where somebody else has the lock.
    private func patiently(
        _ patience: Duration, _ body: () async throws(BlockError) -> OpenImage
    ) async throws(BlockError) -> OpenImage {
        let begin = ContinuousClock.now
        while true {
            do throws(BlockError) { return try await body() } catch {
                guard error.code == .locked, ContinuousClock.now - begin < patience else { throw error }
                // The agent is being started: nobody cancels that.
                try? await Task.sleep(for: .milliseconds(50))
            }
        }
    }

    private func close(_ image: OpenImage, of id: String) async {
        claims.release(.drive(id))
        do throws(BlockError) { try await image.close() } catch {
            logger.warning("The drive \(id) was not closed well: \(error.message)")
        }
    }

    /// Closes a drive that may have been written.
    private func close(_ drive: Drive) async {
        guard let image = drive.image, let live = drive.live else { return }
        let id = drive.option.id
        guard drive.jobID == nil, !drive.isStuck else {
            logger.warning("The drive \(id) is left open: requests to it do not end")
            return
        }
        defer { engines.release(image.device.engine) }
        guard drive.isWritten else { return await close(image, of: id) }
        claims.release(.drive(id))
        do throws(BlockError) {
            try await live.engine.run { () async throws(BlockError) in
                do throws(BlockError) { try await live.flush() } catch {
                    // Whatever it was, the files and their locks are to be given up.
                    try? await live.close()
                    throw error
                }
                try await live.close()
            }
        } catch {
            logger.error("The drive \(id) was not flushed and closed well: \(error.message)")
        }
    }

    private static func info(_ drive: Drive) -> DriveInfo {
        var info = DriveInfo(
            id: drive.option.id, file: drive.option.file, format: drive.image?.format ?? drive.option.format,
            isReadOnly: drive.option.isReadOnly, cache: drive.option.cache, jobID: drive.jobID,
            isFromCommandLine: drive.isFromCommandLine, problem: drive.problem?.message,
            exports: drive.exports.sorted())
        guard let image = drive.image else { return info }
        info.size = image.device.size
        info.clusterSize = image.layers.first?.clusterSize ?? 0
        info.backing = image.layers.dropFirst().map { layer in
            DriveInfo.BackingFile(file: layer.path, format: layer.format, size: layer.virtualSize)
        }
        return info
    }
}
