// A program that uses this library names requests, events, addresses and statuses in every line of its code; they are
// part of the library, so `import DriveBackupClient` is all it needs.
@_exported public import DriveBackupRPC
@_exported public import DriveBackupWire
