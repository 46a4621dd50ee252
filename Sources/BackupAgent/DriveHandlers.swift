internal import DriveBackupRPC
internal import DriveBackupWire

extension AgentHandlers {
    func addDrives(to router: inout RPCRouter) {
        router.unary(DrivesMethods.list) { (_, _) async throws(RPCStatus) in
            var response = ListDrivesResponse()
            response.drives = await drives.list().map(\.wire)
            return response
        }
        router.unary(DrivesMethods.get) { (request, _) async throws(RPCStatus) in
            try await translate { () async throws(AgentError) in try await drives.get(request.id).wire }
        }
        router.unary(DrivesMethods.add) { (request, context) async throws(RPCStatus) in
            let access = access(context)
            return try await translate { () async throws(AgentError) in
                try await drives.add(DriveOption(request), access: access).wire
            }
        }
        router.unary(DrivesMethods.remove) { (request, _) async throws(RPCStatus) in
            try await translate { () async throws(AgentError) in
                try await drives.remove(request.id)
                return RemoveDriveResponse()
            }
        }
    }
}
