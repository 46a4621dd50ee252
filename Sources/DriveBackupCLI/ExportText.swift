internal import DriveBackupClient

/// Exports in words for people.
enum ExportText {
    static func table(_ exports: [Export]) -> Table {
        var table = Table([
            ("EXPORT", .left), ("SERVES", .left), ("ACCESS", .left), ("CLIENTS", .right), ("ADDRESS", .left),
        ])
        for export in exports {
            let clients = export.problem.isEmpty ? "\(export.clients)" : ""
            table.add([export.name, what(export), access(export), clients, export.address])
        }
        return table
    }

    /// `vm1: vm1, read-write, unix:/run/vm/vm1.sock`.
    static func line(_ export: Export) -> String {
        ColumnText.printable("\(export.name): \(what(export)), \(access(export)), \(export.address)")
    }

    /// Why exports are not served, a line each.
    static func problems(_ exports: [Export]) -> [String] {
        exports.filter { !$0.problem.isEmpty }.map { ColumnText.printable("\($0.name): \($0.problem)") }
    }

    private static func what(_ export: Export) -> String {
        export.snapshotOf.isEmpty ? export.drive : "\(export.drive) at the start of \(export.snapshotOf)"
    }

    private static func access(_ export: Export) -> String {
        guard export.problem.isEmpty else { return "not served" }
        return export.readOnly ? "read-only" : "read-write"
    }
}
