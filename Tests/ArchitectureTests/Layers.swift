/// The arrows of docs/architecture.md: what each module may import of ours and of others. Whoever adds an arrow adds it
/// here, and says why in the architecture.
enum Layers {
    /// What every module may import: the language and the C library.
    static let everywhere: Set<String> = [
        "Dispatch", "Foundation", "FoundationEssentials", "Glibc", "Musl", "Synchronization",
    ]

    static let allowed: [String: Set<String>] = [
        // The disk side.
        "BlockIO": ["CBlockIO", "CLiburing"],
        "DiskImages": ["BlockIO", "CZlib", "CZstd"],
        "BackupJobs": ["BlockIO", "CXXHash", "CCrypto"],
        "NBD": ["BlockIO", "CBlockIO"],

        // The wire side; nothing else in the package knows NIO or libprotobuf-c.
        "DriveBackupWire": ["CWire", "CProtobufC"],
        "DriveBackupRPC": ["DriveBackupWire", "NIOCore", "NIOPosix", "Logging"],
        "DriveBackupClient": ["DriveBackupRPC", "DriveBackupWire"],
        "DriveBackupCLI": ["DriveBackupClient", "DriveBackupRPC", "DriveBackupWire", "ArgumentParser"],

        // The only place that sees both sides.
        "BackupAgent": [
            "BlockIO", "CBlockIO", "DiskImages", "BackupJobs", "NBD", "DriveBackupRPC", "DriveBackupWire",
            "GRDB", "Logging", "ServiceLifecycle", "UnixSignals",
        ],

        // Executables: options and wiring.
        "drive-backup-agent": ["BackupAgent", "ArgumentParser", "Logging"],
        "drive-backup": ["DriveBackupCLI"],
        "wiregen": ["CDescriptor", "CProtobufC"],

        // Tests: what they test, and the kit.
        "TestKit": ["BlockIO", "Testing"],
        "BlockIOTests": ["BlockIO", "TestKit", "Testing"],
        "DiskImagesTests": ["DiskImages", "BlockIO", "TestKit", "Testing"],
        "BackupJobsTests": ["BackupJobs", "BlockIO", "TestKit", "Testing"],
        "NBDTests": ["NBD", "BlockIO", "TestKit", "Testing"],
        "DriveBackupWireTests": [
            "DriveBackupWire", "CWire", "CWireTesting", "CProtobufC", "TestKit", "Testing",
        ],
        "DriveBackupRPCTests": [
            "DriveBackupRPC", "DriveBackupWire", "NIOCore", "NIOEmbedded", "NIOPosix", "Logging", "Testing",
        ],
        "DriveBackupClientTests": [
            "DriveBackupCLI", "DriveBackupClient", "DriveBackupRPC", "DriveBackupWire", "ArgumentParser",
            "Logging", "Testing",
        ],
        "BackupAgentTests": [
            "BackupAgent", "BlockIO", "DiskImages", "BackupJobs", "DriveBackupClient", "DriveBackupRPC",
            "DriveBackupWire", "TestKit", "Testing", "Logging",
        ],
        "ArchitectureTests": ["Testing"],
    ]

    static let diskSide: Set<String> = ["BlockIO", "DiskImages", "BackupJobs", "NBD"]
    static let wireSide: Set<String> = ["DriveBackupWire", "DriveBackupRPC", "DriveBackupClient"]

    /// What is wrong with the imports of a file, a sentence for each.
    static func violations(of file: SourceText) -> [String] {
        guard let allowed = allowed[file.module] else {
            return ["\(file.path): Layers.allowed says nothing about the module \(file.module)"]
        }
        return file.imports.compactMap { name in
            guard !everywhere.contains(name), !allowed.contains(name) else { return nil }
            return "\(file.path): \(file.module) may not import \(name)"
        }
    }
}
