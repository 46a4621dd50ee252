internal import DriveBackupClient

/// Drives in words for people.
enum DriveText {
    static func table(_ drives: [Drive]) -> Table {
        var table = Table([
            ("DRIVE", .left), ("SIZE", .right), ("FORMAT", .left), ("ACCESS", .left), ("JOB", .left),
            ("EXPORTS", .left), ("FILE", .left),
        ])
        for drive in drives {
            let size = drive.problem.isEmpty ? ByteSize.text(drive.size) : ""
            table.add([
                drive.id, size, drive.format, access(drive), drive.jobID,
                drive.exports.joined(separator: ","), drive.file,
            ])
        }
        return table
    }

    /// `vm1: 20.0 GiB, qcow2, read-write, /var/lib/vm/vm1.qcow2`.
    static func line(_ drive: Drive) -> String {
        let facts = [ByteSize.text(drive.size), drive.format, access(drive), drive.file]
        return ColumnText.printable("\(drive.id): \(facts.joined(separator: ", "))")
    }

    /// What there is to say about the drive, in a few lines.
    static func story(_ drive: Drive) -> [String] {
        var lines = [line(drive)]
        func add(_ title: String, _ text: String) {
            lines.append("  \(ColumnText.padded(title, to: 8)) \(ColumnText.printable(text))")
        }
        if !drive.problem.isEmpty { add("problem", drive.problem) }
        for backing in drive.backing {
            add("on", "\(backing.file), \(backing.format), \(ByteSize.text(backing.size))")
        }
        if drive.clusterSize > 0 { add("clusters", ByteSize.text(drive.clusterSize)) }
        if drive.cache == "none" { add("cache", "none: past the host's page cache") }
        if !drive.jobID.isEmpty { add("job", drive.jobID) }
        if !drive.exports.isEmpty { add("exports", drive.exports.joined(separator: ", ")) }
        if drive.fromCommandLine { add("from", "the agent's command line") }
        return lines
    }

    private static func access(_ drive: Drive) -> String {
        guard drive.problem.isEmpty else { return "not open" }
        return drive.readOnly ? "read-only" : "read-write"
    }
}
