package import DriveBackupWire

extension ExportInfo {
    package var wire: DriveBackupWire.Export {
        var export = DriveBackupWire.Export()
        export.name = name
        export.drive = drive
        export.address = address
        export.readOnly = isReadOnly
        export.snapshotOf = snapshotOf ?? ""
        export.clients = UInt32(clamping: clients)
        export.fromCommandLine = isFromCommandLine
        export.problem = (problem ?? "").replacing("\0", with: "\u{FFFD}")
        return export
    }
}

extension ExportSpec {
    /// The export that a client wants to add; every field is checked, none is looked up.
    package init(_ request: AddExportRequest) throws(AgentError) {
        if request.snapshotOf.isEmpty {
            try Identifier.check(request.drive, field: "drive")
        } else {
            try Identifier.check(request.snapshotOf, field: "snapshot_of")
            if !request.drive.isEmpty { try Identifier.check(request.drive, field: "drive") }
        }
        guard !request.address.isEmpty else {
            throw AgentError(.fieldInvalid, "The address is missing", subject: "address")
        }
        let address = try ExportAddress(parsing: request.address)
        try address.checkSyntax()
        var name = request.name
        if name.isEmpty {
            name = request.snapshotOf.isEmpty ? request.drive : Self.snapshotName(ofJob: request.snapshotOf)
        }
        try ExportOption.checkName(name)
        self.init(
            name: name, drive: request.drive, address: address, isReadOnly: request.readOnly,
            snapshotOf: request.snapshotOf.isEmpty ? nil : request.snapshotOf)
    }

    /// The name of a job's point in time when none is given. Not the job's id: that is the drive's, whose own export
    /// has it.
    static func snapshotName(ofJob id: String) -> String {
        let suffix = "-snapshot"
        return String(id.prefix(ExportOption.longestName - suffix.utf8.count)) + suffix
    }
}
