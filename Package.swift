// swift-tools-version: 6.2
import PackageDescription

let settings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("ExistentialAny"),
]

let argumentParser = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")
let grdb = Target.Dependency.product(name: "GRDB", package: "GRDB.swift")
let lifecycle = Target.Dependency.product(name: "ServiceLifecycle", package: "swift-service-lifecycle")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let nioCore = Target.Dependency.product(name: "NIOCore", package: "swift-nio")
let nioEmbedded = Target.Dependency.product(name: "NIOEmbedded", package: "swift-nio")
let nioPosix = Target.Dependency.product(name: "NIOPosix", package: "swift-nio")
let unixSignals = Target.Dependency.product(name: "UnixSignals", package: "swift-service-lifecycle")

func swift(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: settings)
}

func executable(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .executableTarget(name: name, dependencies: dependencies, swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency], exclude: [String] = []) -> Target {
    .testTarget(name: name, dependencies: dependencies, exclude: exclude, swiftSettings: settings)
}

// The layers of docs/architecture.md, lowest first; Tests/ArchitectureTests holds the code to them.
let targets: [Target] = [
    // C: system libraries, generated messages, thin shims.
    .systemLibrary(name: "CProtobufC", pkgConfig: "libprotobuf-c"),
    .systemLibrary(name: "CLiburing", pkgConfig: "liburing"),
    .systemLibrary(name: "CZlib", pkgConfig: "zlib"),
    .systemLibrary(name: "CZstd", pkgConfig: "libzstd"),
    .systemLibrary(name: "CXXHash", pkgConfig: "libxxhash"),
    .systemLibrary(name: "CCrypto", pkgConfig: "libcrypto"),
    .target(name: "CWire", dependencies: ["CProtobufC"]),
    .target(name: "CDescriptor", dependencies: ["CProtobufC"]),
    .target(name: "CBlockIO", dependencies: ["CLiburing"]),

    // The disk side.
    swift("BlockIO", ["CBlockIO"]),
    swift("DiskImages", ["BlockIO", "CZlib", "CZstd"]),
    swift("BackupJobs", ["BlockIO", "CXXHash", "CCrypto"]),
    swift("NBD", ["BlockIO", "CBlockIO"]),

    // The wire side.
    swift("DriveBackupWire", ["CWire", "CProtobufC"]),
    swift("DriveBackupRPC", ["DriveBackupWire", nioCore, nioPosix, logging]),
    swift("DriveBackupClient", ["DriveBackupRPC", "DriveBackupWire"]),

    // What the command does; an executable cannot be imported by tests, this can.
    swift("DriveBackupCLI", ["DriveBackupClient", "DriveBackupRPC", "DriveBackupWire", argumentParser]),

    // The only place that sees both sides.
    swift(
        "BackupAgent",
        [
            "BlockIO", "CBlockIO", "DiskImages", "BackupJobs", "NBD", "DriveBackupRPC", "DriveBackupWire",
            grdb,
            lifecycle, logging, unixSignals,
        ]),

    executable("drive-backup-agent", ["BackupAgent", argumentParser, logging]),
    executable("drive-backup", ["DriveBackupCLI"]),
    executable("wiregen", ["CDescriptor", "CProtobufC"]),

    // Tests.
    .target(name: "TestKit", dependencies: ["BlockIO"], path: "Tests/TestKit", swiftSettings: settings),
    tests("BlockIOTests", ["BlockIO", "TestKit"]),
    tests("DiskImagesTests", ["DiskImages", "TestKit"]),
    tests("BackupJobsTests", ["BackupJobs", "TestKit"]),
    tests("NBDTests", ["NBD", "TestKit"]),
    .target(name: "CWireTesting", dependencies: ["CProtobufC"], path: "Tests/CWireTesting"),
    tests(
        "DriveBackupWireTests", ["DriveBackupWire", "CProtobufC", "CWire", "CWireTesting", "TestKit"],
        exclude: ["proto"]),
    tests("DriveBackupRPCTests", ["DriveBackupRPC", nioCore, nioEmbedded, nioPosix]),
    tests(
        "DriveBackupClientTests",
        ["DriveBackupCLI", "DriveBackupClient", "DriveBackupRPC", "DriveBackupWire", logging]),
    tests("BackupAgentTests", ["BackupAgent", "DriveBackupClient", "TestKit"]),
    tests("ArchitectureTests", []),
]

let package = Package(
    name: "drive-backup",
    products: [
        .executable(name: "drive-backup-agent", targets: ["drive-backup-agent"]),
        .executable(name: "drive-backup", targets: ["drive-backup"]),
        .library(name: "DriveBackupClient", targets: ["DriveBackupClient"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
    ],
    targets: targets
)
