import Testing
@testable import DriveBackupRPC
