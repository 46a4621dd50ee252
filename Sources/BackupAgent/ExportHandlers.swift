internal import DriveBackupRPC
internal import DriveBackupWire

extension AgentHandlers {
    func addExports(to router: inout RPCRouter) {
        router.unary(ExportsMethods.list) { (_, _) async throws(RPCStatus) in
            var response = ListExportsResponse()
            response.exports = await exports.list().map(\.wire)
            return response
        }
        router.unary(ExportsMethods.add) { (request, context) async throws(RPCStatus) in
            let access = access(context)
            return try await translate { () async throws(AgentError) in
                try await add(ExportSpec(request), access: access).wire
            }
        }
        router.unary(ExportsMethods.remove) { (request, _) async throws(RPCStatus) in
            try await translate { () async throws(AgentError) in
                try await exports.remove(request.name)
                return RemoveExportResponse()
            }
        }
    }

    private func add(_ spec: ExportSpec, access: PathAccess) async throws(AgentError) -> ExportInfo {
        guard let id = spec.snapshotOf else { return try await exports.add(spec, access: access) }
        let view = try await jobs.view(of: id)
        let info = try await exports.add(spec, view: view, access: access)
        // The job may have ended meanwhile; if it ends from here on, it knows of the export.
        guard await jobs.hasView(view.job) else {
            await exports.endSnapshots(of: view.job)
            throw AgentError(.jobState, "The job \(id) has ended, and with it its point in time", subject: id)
        }
        return info
    }
}
