internal import BlockIO
package import Logging
internal import NBD

// Exports are added and removed one after another, since a server is made with the first export of an address and ended
// with the last. Guests' requests never come here.

/// The exports: those of the command line, those that clients add, which are kept over restarts, and the points in time
/// of running jobs, which end with their jobs.
package actor ExportRegistry {
    private struct Entry {
        var info: ExportInfo
        var address: ExportAddress
        /// Where it is served; nil while it is not.
        var place: NBDAddress?
        /// The job whose point in time it is.
        var job: JobNumber?
    }

    /// How long requests that run may take when an export is removed, its job has ended, or the agent stops.
    static let patience = (
        removal: Duration.seconds(5), jobEnd: Duration.milliseconds(500), stop: Duration.seconds(1)
    )

    private var entries: [String: Entry] = [:]
    private var servers: [NBDAddress: NBDServer] = [:]
    private var isStopping = false
    private let turnstile = Turnstile()
    private let drives: DriveRegistry
    private let engines: EnginePool
    private let store: StateStore?
    private let logger: Logger

    /// Makes an empty registry; without `store` nothing is kept.
    package init(drives: DriveRegistry, engines: EnginePool, store: StateStore?, logger: Logger) {
        self.drives = drives
        self.engines = engines
        self.store = store
        self.logger = logger
    }

    // MARK: At the agent's start

    /// Serves an export of the command line, which is the operator's own. Throws a sentence for the operator.
    package func openFromCommandLine(_ option: ExportOption) async throws(AgentError) {
        try await turnstile.pass { () async throws(AgentError) in
            do throws(AgentError) {
                let isReadOnly = try await self.drives.get(option.drive).isReadOnly
                let spec = ExportSpec(
                    name: option.name, drive: option.drive,
                    address: try ExportAddress(parsing: option.address),
                    isReadOnly: option.isWritable.map { !$0 } ?? isReadOnly)
                _ = try await self.serve(spec, access: .everything, isFromCommandLine: true)
            } catch {
                throw AgentError(
                    error.reason, "Export \(option.name): \(error.message)", subject: option.name)
            }
        }
    }

    /// Serves again what clients have added in earlier runs, in the order in which they did. What cannot be served stays
    /// listed with its problem; where the command line has given the name to another, it is left alone.
    package func openStored(_ stored: [StateStore.StoredExport], access: PathAccess) async {
        await turnstile.pass { () async in
            for export in stored { await self.restore(export, access: access) }
        }
    }

    private func restore(_ stored: StateStore.StoredExport, access: PathAccess) async {
        guard entries[stored.name] == nil else { return }
        do throws(AgentError) {
            let spec = ExportSpec(
                name: stored.name, drive: stored.drive, address: try ExportAddress(parsing: stored.address),
                isReadOnly: stored.isReadOnly)
            do throws(AgentError) { _ = try await serve(spec, access: access) } catch {
                logger.error("The export \(stored.name) is not served: \(error.message)")
                var info = Self.info(spec)
                info.problem = error.message
                entries[stored.name] = Entry(info: info, address: spec.address)
                // Without the drive there is nothing to keep from being removed.
                try? await drives.attach(export: stored.name, to: stored.drive)
            }
        } catch {
            logger.error("The export \(stored.name) is forgotten for now: \(error.message)")
        }
    }

    // MARK: For clients

    /// All exports, by name.
    package func list() -> [ExportInfo] { entries.values.map(current).sorted { $0.name < $1.name } }

    /// Serves a drive and keeps that over restarts. When it throws, nothing has changed.
    package func add(_ spec: ExportSpec, access: PathAccess) async throws(AgentError) -> ExportInfo {
        try await turnstile.pass { () async throws(AgentError) in
            var spec = spec
            // A drive that nobody writes is exported so without being asked.
            if try await self.drives.get(spec.drive).isReadOnly { spec.isReadOnly = true }
            let info = try await self.serve(spec, access: access)
            do throws(AgentError) {
                try await self.store?.add(
                    StateStore.StoredExport(
                        name: info.name, drive: info.drive, address: info.address, isReadOnly: info.isReadOnly
                    ))
            } catch {
                await self.end(info.name, within: .zero)
                throw error
            }
            return info
        }
    }

    /// Serves a job's point in time, until `endSnapshots` of that job.
    package func add(_ spec: ExportSpec, view: JobView, access: PathAccess) async throws(AgentError)
        -> ExportInfo
    {
        guard spec.drive.isEmpty || spec.drive == view.drive else {
            throw AgentError(
                .fieldInvalid,
                "The job \(view.jobID) backs up \(view.drive), not \(spec.drive)", subject: "drive")
        }
        var spec = spec
        spec.drive = view.drive
        spec.isReadOnly = true
        let full = spec
        return try await turnstile.pass { () async throws(AgentError) in
            try await self.serve(full, access: access, view: view)
        }
    }

    /// Serves an export no more and forgets it.
    package func remove(_ name: String) async throws(AgentError) {
        try await turnstile.pass { () async throws(AgentError) in
            let entry = try await self.find(name)
            guard !entry.isFromCommandLine else {
                throw AgentError(
                    .exportInvalid,
                    "Couldn't remove the export \(name): it was given on the agent's command line",
                    subject: name)
            }
            if entry.snapshotOf == nil { try await self.store?.remove(export: name) }
            await self.end(name, within: Self.patience.removal)
            self.logger.info("The export \(name) is removed")
        }
    }

    // MARK: For jobs, and the agent's end

    /// Removes the exports of a job's point in time, which is over.
    package func endSnapshots(of job: JobNumber) async {
        guard entries.values.contains(where: { $0.job == job }) else { return }
        await turnstile.pass { () async in
            for name in await self.names(of: job) { await self.end(name, within: Self.patience.jobEnd) }
        }
    }

    /// Serves nothing any more; requests that run end, within a second. What is kept over restarts stays kept. Drives with
    /// requests that do not end are told of.
    package func shutDown() async {
        isStopping = true
        await turnstile.pass { () async in
            let servers = await self.servers
            await withTaskGroup(of: Void.self) { group in
                for (place, server) in servers {
                    group.addTask {
                        await server.shutDown(within: Self.patience.stop)
                        await self.forget(server, at: place)
                    }
                }
            }
        }
    }

    private func forget(_ server: NBDServer, at place: NBDAddress) async {
        servers[place] = nil
        for (name, entry) in entries where entry.place == place {
            entries[name] = nil
            await detach(entry, from: server)
        }
    }

    /// The export of `entry` is gone from `server`. A read of a point in time may hang in the target, and is no request to
    /// the drive: it is the job that knows who uses what of it.
    private func detach(_ entry: Entry, from server: NBDServer?) async {
        let (name, drive) = (entry.info.name, entry.info.drive)
        guard entry.job == nil, let server, server.isLeaving(name) else {
            return await drives.detach(export: name, from: drive)
        }
        await drives.detach(export: name, from: drive) { server.isLeaving(name) }
    }

    private func names(of job: JobNumber) -> [String] {
        entries.filter { $0.value.job == job }.keys.sorted()
    }

    // MARK: One export

    private func find(_ name: String) throws(AgentError) -> ExportInfo {
        guard let entry = entries[name] else {
            throw AgentError(
                .exportNotFound, "There is no export \(Identifier.quoted(name)) ('export list' shows them)",
                subject: name)
        }
        return entry.info
    }

    /// Serves what `spec` says. When it throws, nothing is left of it.
    private func serve(
        _ spec: ExportSpec, access: PathAccess, view: JobView? = nil, isFromCommandLine: Bool = false
    ) async throws(AgentError) -> ExportInfo {
        guard !isStopping else { throw AgentError(.agentStopping, "The agent is stopping") }
        guard entries[spec.name] == nil else {
            throw AgentError(
                .exportExists,
                "Couldn't add the export \(spec.name): there is one of that name already (give another with --name)",
                subject: spec.name)
        }
        try await drives.attach(export: spec.name, to: spec.drive)
        do throws(AgentError) {
            let export = try await export(spec, view)
            let place = try await resolve(spec.address, access, on: export.device.engine)
            let server = try await server(at: place, spec.address, engine: export.device.engine)
            do throws(BlockError) { try server.add(export) } catch {
                await endIfUnused(server)
                throw AgentError(error, of: .listener, subject: spec.name)
            }
            var info = Self.info(spec)
            info.address = spec.address.listening(at: server.address).description
            info.isFromCommandLine = isFromCommandLine
            entries[spec.name] = Entry(
                info: info, address: spec.address, place: server.address, job: view?.job)
            let what = view.map { "the point in time of the job \($0.jobID)" } ?? "the drive \(info.drive)"
            logger.info("The export \(info.name), \(what), is served at \(info.address)")
            return info
        } catch {
            await drives.detach(export: spec.name, from: spec.drive)
            throw error
        }
    }

    private func export(_ spec: ExportSpec, _ view: JobView?) async throws(AgentError) -> NBDExport {
        if let view {
            return NBDExport(
                name: spec.name,
                description: "\(view.drive) as it was when the job \(view.jobID) began", device: view.device,
                isReadOnly: true)
        }
        let device = try await drives.device(of: spec.drive, forWriting: !spec.isReadOnly)
        return NBDExport(
            name: spec.name, description: "the drive \(spec.drive)", device: device,
            isReadOnly: spec.isReadOnly)
    }

    private func resolve(
        _ address: ExportAddress, _ access: PathAccess, on engine: any IOEngine
    ) async throws(AgentError) -> NBDAddress {
        let resolved: Result<NBDAddress, AgentError> = await engine.blocking {
            Result { () throws(AgentError) in try address.resolve(access: access) }
        }
        return try resolved.get()
    }

    /// The server at an address, made when it is the first there.
    private func server(
        at place: NBDAddress, _ address: ExportAddress, engine: any IOEngine
    ) async throws(AgentError) -> NBDServer {
        if let server = servers[place] { return server }
        let logger = logger
        do throws(BlockError) {
            let server = try await NBDServer(listening: place, engine: engine) { line in
                logger.info("\(line)")
            }
            servers[server.address] = server
            return server
        } catch {
            throw AgentError(
                .listenFailed, "Couldn't serve an export on \(address): \(error.message)", subject: "address")
        }
    }

    private func end(_ name: String, within patience: Duration) async {
        guard let entry = entries[name] else { return }
        let server = entry.place.flatMap { servers[$0] }
        if let server {
            if await !server.remove(name, within: patience) {
                logger.warning("Requests of the export \(name) have not ended; they are left behind")
            }
            entries[name]?.place = nil
            await endIfUnused(server)
        }
        entries[name] = nil
        await detach(entry, from: server)
    }

    private func endIfUnused(_ server: NBDServer) async {
        guard !entries.values.contains(where: { $0.place == server.address }) else { return }
        servers[server.address] = nil
        await server.shutDown(within: Self.patience.jobEnd)
    }

    private func current(_ entry: Entry) -> ExportInfo {
        var info = entry.info
        if let place = entry.place { info.clients = servers[place]?.clients(of: info.name) ?? 0 }
        return info
    }

    private static func info(_ spec: ExportSpec) -> ExportInfo {
        ExportInfo(
            name: spec.name, drive: spec.drive, address: spec.address.description,
            isReadOnly: spec.isReadOnly,
            snapshotOf: spec.snapshotOf, isFromCommandLine: false)
    }
}
