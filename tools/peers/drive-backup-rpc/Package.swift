// swift-tools-version: 6.2
import PackageDescription

// The product's own side of the rpc rows of tools/bench: its client library and its server, with the service of the
// peers beside it.
let package = Package(
    name: "drive-backup-rpc",
    dependencies: [
        .package(name: "drive-backup", path: "../../.."),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    ],
    targets: [
        .executableTarget(
            name: "drive-backup-rpc",
            dependencies: [
                .product(name: "DriveBackupClient", package: "drive-backup"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: [
                .swiftLanguageMode(.v6), .enableUpcomingFeature("InternalImportsByDefault"),
                .enableUpcomingFeature("MemberImportVisibility"), .enableUpcomingFeature("ExistentialAny"),
            ])
    ]
)
